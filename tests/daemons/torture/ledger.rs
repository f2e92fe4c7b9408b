//! What was stored, as those who stored it know it: what may be found, and which bytes it must have.
//!
//! ```text
//! Never -> commit is sent -> Maybe -> Stored, all of it new -> Kept -> not found by a check -> Never
//! ```
//!
//! A daemon that was killed says nothing any more, so much is `Maybe`; `Never` is what nobody may find.

use kvferry_client::BlockHash;

/// Places of one chain.
pub(super) const LENGTH: usize = 12;
/// Fingerprints. The same names stand for other content in each.
pub(super) const KINDS: usize = 2;

/// What is known of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Never,
    Maybe,
    Kept,
}

/// One block of one fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Name {
    pub(super) kind: usize,
    pub(super) chain: usize,
    pub(super) place: usize,
}

/// See the module.
pub(super) struct Ledger {
    states: Vec<State>,
    chains: usize,
    /// How often a fingerprint was cleared: blocks have other bytes after it.
    versions: [u64; KINDS],
    /// Whether all of it fits in the tiers, so that nothing may go by itself.
    is_roomy: bool,
}

impl Ledger {
    pub(super) fn new(chains: usize, is_roomy: bool) -> Self {
        Self { states: vec![State::Never; KINDS * chains * LENGTH], chains, versions: [0; KINDS], is_roomy }
    }

    pub(super) const fn chains(&self) -> usize {
        self.chains
    }

    pub(super) const fn is_roomy(&self) -> bool {
        self.is_roomy
    }

    fn at(&self, name: Name) -> usize {
        (name.kind * self.chains + name.chain) * LENGTH + name.place
    }

    /// Blocks of a chain from the first on that may be there.
    pub(super) fn prefix(&self, kind: usize, chain: usize) -> usize {
        let may = |place: &usize| self.states[self.at(Name { kind, chain, place: *place })] != State::Never;
        (0..LENGTH).take_while(may).count()
    }

    /// Its engine vouches for a block: it may be found from now on.
    pub(super) fn committing(&mut self, name: Name) {
        let at = self.at(name);
        if self.states[at] == State::Never {
            self.states[at] = State::Maybe;
        }
    }

    /// It was acknowledged as new, or was loaded: it survives.
    pub(super) fn is_kept(&mut self, name: Name) {
        let at = self.at(name);
        self.states[at] = State::Kept;
    }

    /// The daemon says that it has the block.
    pub(super) fn found(&self, name: Name) {
        assert!(self.states[self.at(name)] != State::Never, "{name:?} is a phantom: nobody vouched for it");
    }

    /// A daemon that nobody else asks anything does not have the block.
    pub(super) fn missing(&mut self, name: Name) {
        let at = self.at(name);
        assert!(!self.is_roomy || self.states[at] != State::Kept, "{name:?} is lost: it was acknowledged");
        self.states[at] = State::Never;
    }

    /// The fingerprint is to be forgotten: what was kept is, or is not any more.
    pub(super) fn clearing(&mut self, kind: usize) {
        for state in self.of_kind(kind) {
            if *state == State::Kept {
                *state = State::Maybe;
            }
        }
    }

    /// It was forgotten.
    pub(super) fn cleared(&mut self, kind: usize) {
        self.of_kind(kind).fill(State::Never);
        self.versions[kind] += 1;
    }

    /// Host memory is gone: what the disk had was for it to decide.
    pub(super) fn lost_memory(&mut self) {
        (0..KINDS).for_each(|kind| self.clearing(kind));
    }

    fn of_kind(&mut self, kind: usize) -> &mut [State] {
        let count = self.chains * LENGTH;
        &mut self.states[kind * count..(kind + 1) * count]
    }

    /// The bytes that a block has, in words that count on from one that nothing else begins with.
    pub(super) fn content(&self, name: Name, bytes: u64) -> Vec<u8> {
        let number = (self.versions[name.kind] << 32) + self.at(name) as u64 + 1;
        let first = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut content = vec![0; usize::try_from(bytes).expect("fits")];
        for (word, at) in (0..).zip(content.chunks_exact_mut(8)) {
            at.copy_from_slice(&first.wrapping_add(word).to_le_bytes());
        }
        content
    }

    /// Bytes that arrived in an engine are those of the block.
    pub(super) fn check(&self, name: Name, bytes: &[u8]) {
        let expected = self.content(name, bytes.len() as u64);
        let differs = || bytes.iter().zip(&expected).position(|(is, must)| is != must);
        assert!(bytes == expected, "{name:?} is corrupt from byte {:?} of {}", differs(), bytes.len());
    }
}

impl Name {
    pub(super) fn hash(self) -> BlockHash {
        let mut hash = [3; 32];
        hash[..8].copy_from_slice(&(self.chain * LENGTH + self.place).to_le_bytes());
        hash
    }
}

/// Blocks of a chain.
pub(super) fn names(kind: usize, chain: usize, places: std::ops::Range<usize>) -> Vec<Name> {
    places.map(|place| Name { kind, chain, place }).collect()
}
