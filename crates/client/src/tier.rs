//! What a client asks of the tiers of its node: look up, load, store.

use kvferry_proto::v1::{self, to_daemon};

use crate::asked::{Asked, Kind};
use crate::client::Client;
use crate::request::{BlockHash, LoadedBlocks, StoredBlocks};

impl Client {
    /// Asks what the tiers hold of a prompt: of each cache group the chain of its blocks, from the first on.
    /// [`crate::Event::Found`] with the returned key follows, exactly once. What is found stays until every rank has loaded
    /// it, until [`Self::forget`], or for as long as the daemon keeps such claims.
    pub fn lookup(&self, request_id: &str, groups: &[Vec<BlockHash>]) -> u64 {
        let key = self.id();
        let groups = groups.iter().map(|hashes| v1::BlockHashes { hashes: hashes.concat() }).collect();
        let lookup = v1::Lookup { key, request_id: request_id.to_owned(), groups };
        self.ask(key, Self::asked(Kind::Lookup, request_id), to_daemon::Body::Lookup(lookup));
        key
    }

    /// Nobody will load what this lookup found. Best effort: the claim's own time stands behind it.
    pub fn forget(&self, key: u64) {
        self.tell(to_daemon::Body::Forget(v1::Forget { key }));
    }

    /// Nothing stored so far may be found any more by engines of this one's fingerprint: its weights have changed. Each next
    /// daemon is told again before it is asked for anything, until one has answered a lookup behind that. A lookup that comes
    /// while a daemon is at it fails with `cleared`.
    pub fn clear(&self) {
        self.order_clear();
    }

    /// Wants [`crate::Event::TierChanged`] from now on, from every daemon. Some are dropped where nobody polls.
    pub fn watch(&self) {
        self.shared.state().watches = true;
        self.tell(to_daemon::Body::Watch(v1::Watch {}));
    }

    /// Asks for blocks that a lookup of the engine's scheduler has found, under its key `claim`. [`crate::Event::Loaded`]
    /// with the returned key follows, exactly once.
    pub fn load(&self, request_id: &str, claim: u64, groups: &[LoadedBlocks], deadline_ms: u64) -> u64 {
        let key = self.id();
        let blocks =
            |group: &LoadedBlocks| v1::LoadedBlocks { hashes: group.hashes.concat(), blocks: group.blocks.clone() };
        let (request, groups) = (request_id.to_owned(), groups.iter().map(blocks).collect());
        let load = v1::Load { key, request_id: request, claim, groups, deadline_ms };
        self.ask(key, Self::asked(Kind::Load, request_id), to_daemon::Body::Load(load));
        key
    }

    /// Gives blocks to be kept, for `tenant`, at most 64 bytes; empty for nobody in particular. [`crate::Event::Copied`]
    /// with the returned key follows, exactly once; then it is for the caller to [commit](Self::commit).
    pub fn store(&self, request_id: &str, groups: &[StoredBlocks], tenant: &[u8]) -> u64 {
        let key = self.id();
        let blocks = |group: &StoredBlocks| v1::StoredBlocks {
            parent: group.parent.map(Vec::from).unwrap_or_default(),
            hashes: group.hashes.concat(),
            blocks: group.blocks.clone(),
        };
        let (request, groups) = (request_id.to_owned(), groups.iter().map(blocks).collect());
        let store = v1::Store { key, request_id: request, groups, tenant: tenant.to_vec() };
        self.ask(key, Self::asked(Kind::Store, request_id), to_daemon::Body::Store(store));
        key
    }

    /// Vouches that nothing wrote to the blocks of a store before its [`crate::Event::Copied`] came: they are found from now
    /// on. [`crate::Event::Stored`] follows under the same key.
    pub fn commit(&self, key: u64) {
        self.ask(key, Self::asked(Kind::Commit, ""), to_daemon::Body::Commit(v1::Commit { key }));
    }

    fn asked(kind: Kind, request_id: &str) -> Asked {
        Asked { kind, request_id: request_id.to_owned() }
    }
}
