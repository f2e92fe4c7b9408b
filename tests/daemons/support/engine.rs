//! Engines that are no vLLM: a stand-in holds a memfd of known bytes and talks to the daemon through the real client.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kvferry_client::{
    AttachSpec, BlockHash, Client, ClientConfig, Event, Granted, GroupLayout, LayerSpan, Layout, LoadedBlocks, Role,
    StoredBlocks, WantedBlocks,
};
use kvferry_memory::{Meter, Region};

use super::{Daemon, PATIENCE, wait};

/// A client of whatever listens at `socket`.
pub(crate) fn client(socket: PathBuf, engine_id: &str, role: Role) -> Client {
    let config = ClientConfig { socket, engine_id: engine_id.to_owned(), role, reply_timeout: Duration::from_secs(5) };
    Client::start(config).expect("start a client")
}

/// The shape of a stand-in engine's cache.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) blocks: u32,
    pub(crate) layers: u32,
    pub(crate) heads: u32,
    pub(crate) tokens: u32,
    pub(crate) content: u32,
}

impl Shape {
    /// 64 blocks of 8 KiB.
    pub(crate) const SMALL: Self = Self { blocks: 64, layers: 4, heads: 2, tokens: 16, content: 64 };
    /// 64 blocks of 128 KiB.
    pub(crate) const MEDIUM: Self = Self { blocks: 64, layers: 8, heads: 4, tokens: 32, content: 128 };
    /// 32 blocks of 2 MiB: more than the kernel's socket buffers hold.
    pub(crate) const LARGE: Self = Self { blocks: 32, layers: 16, heads: 8, tokens: 64, content: 256 };

    fn page(&self) -> u64 {
        u64::from(self.heads) * u64::from(self.tokens) * u64::from(self.content)
    }

    pub(crate) fn block_bytes(&self) -> u64 {
        self.page() * u64::from(self.layers)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.block_bytes() * u64::from(self.blocks)
    }

    pub(crate) fn layout(&self, order: &str) -> Layout {
        let (layer_stride, block_stride) = self.strides(order);
        let span = LayerSpan {
            layer_count: self.layers,
            offset: 0,
            layer_stride,
            block_stride,
            head_count: self.heads,
            token_count: self.tokens,
            content_bytes: self.content,
        };
        Layout {
            order: order.to_owned(),
            block_count: self.blocks,
            region_bytes: self.bytes(),
            groups: vec![GroupLayout { spans: vec![span] }],
        }
    }

    fn strides(&self, order: &str) -> (u64, u64) {
        match order {
            "LBHNC" | "LBNHC" => (self.page() * u64::from(self.blocks), self.page()),
            "BLHNC" | "BLNHC" => (self.page(), self.block_bytes()),
            other => panic!("no strides for {other}"),
        }
    }
}

/// How to attach a stand-in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EngineOptions {
    pub(crate) shape: Shape,
    pub(crate) order: &'static str,
    pub(crate) fingerprint: [u8; 32],
    /// What it calls its model.
    pub(crate) model: &'static str,
    /// Whose blocks it stores.
    pub(crate) tenant: &'static str,
    /// Which of how many ranks this one is. Each has a scheduler of its own.
    pub(crate) rank: u32,
    pub(crate) rank_count: u32,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            shape: Shape::SMALL,
            order: "LBHNC",
            fingerprint: [7; 32],
            model: "a model",
            tenant: "tenant",
            rank: 0,
            rank_count: 1,
        }
    }
}

/// A stand-in for a vLLM engine: scheduler and worker connections over one memfd. Named so that no one takes it for
/// the real thing.
pub(crate) struct StandInEngine {
    pub(crate) name: String,
    pub(crate) scheduler: Client,
    pub(crate) worker: Client,
    pub(crate) shape: Shape,
    order: &'static str,
    tenant: &'static str,
    region: Arc<Region>,
    /// Of the daemon that was last seen.
    daemon_epoch: Option<u64>,
    seen: Vec<Event>,
}

impl StandInEngine {
    pub(crate) fn attach(daemon: &Daemon, name: &str) -> Self {
        Self::attach_with(daemon, name, EngineOptions::default())
    }

    pub(crate) fn large(daemon: &Daemon, name: &str) -> Self {
        Self::attach_with(daemon, name, EngineOptions { shape: Shape::LARGE, ..Default::default() })
    }

    pub(crate) fn attach_with(daemon: &Daemon, name: &str, options: EngineOptions) -> Self {
        Self::attach_at(daemon.socket(), name, options)
    }

    pub(crate) fn attach_at(socket: PathBuf, name: &str, options: EngineOptions) -> Self {
        let EngineOptions { shape, order, fingerprint, rank, rank_count, .. } = options;
        let fd: OwnedFd = kvferry_memory::create("kvferry-test", shape.bytes()).expect("create a memfd");
        let region =
            Region::map(fd.try_clone().expect("duplicate the memfd"), shape.bytes(), &Meter::new()).expect("map");
        let worker = client(socket.clone(), name, Role::Worker);
        let layout = shape.layout(order);
        let (region_fd, model) = (Arc::new(fd), options.model.to_owned());
        worker.attach(AttachSpec { rank, rank_count, fingerprint, layout, region: region_fd, model });
        let scheduler = client(socket, name, Role::Scheduler);
        assert!(worker.wait_connected(PATIENCE) && scheduler.wait_connected(PATIENCE), "no connection");
        let daemon_epoch = worker.daemon_epoch();
        let (name, tenant) = (name.to_owned(), options.tenant);
        Self { name, scheduler, worker, shape, order, tenant, region, daemon_epoch, seen: Vec::new() }
    }

    /// Waits until both connections have found the next daemon by themselves.
    pub(crate) fn wait_attached_again(&mut self) {
        let before = self.daemon_epoch;
        let other = |client: &Client| client.daemon_epoch().filter(|epoch| Some(*epoch) != before);
        self.daemon_epoch = Some(wait(
            || format!("{} to be attached again", self.name),
            || other(&self.worker).filter(|epoch| other(&self.scheduler) == Some(*epoch)),
        ));
    }

    /// Waits until both connections have seen that their daemon is gone.
    pub(crate) fn wait_gone(&self) {
        let is_gone = || !self.worker.is_connected() && !self.scheduler.is_connected();
        wait(|| format!("{} to be alone", self.name), || is_gone().then_some(()));
    }

    /// Fills every byte from `seed`, differently in each block and layer.
    pub(crate) fn fill(&self, seed: u8) {
        self.region.write(0, &noise(u64::from(seed), self.shape.bytes())).expect("write");
    }

    /// Fills one block from `seed`.
    pub(crate) fn fill_block(&self, block: u32, seed: u64) {
        let bytes = noise(seed, self.shape.page());
        for offset in self.pages(block) {
            self.region.write(offset, &bytes).expect("inside the region");
        }
    }

    /// Gives a block these bytes, layer after layer.
    pub(crate) fn write_block(&self, block: u32, bytes: &[u8]) {
        let page = usize::try_from(self.shape.page()).expect("fits");
        for (page, offset) in bytes.chunks(page).zip(self.pages(block)) {
            self.region.write(offset, page).expect("inside the region");
        }
    }

    /// A block's bytes, layer after layer.
    pub(crate) fn block(&self, block: u32) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(self.shape.block_bytes()).expect("fits")];
        let page = usize::try_from(self.shape.page()).expect("fits");
        for (page, offset) in bytes.chunks_mut(page).zip(self.pages(block)) {
            self.region.read(offset, page).expect("inside the region");
        }
        bytes
    }

    /// Makes these blocks hold nothing that anybody sends.
    pub(crate) fn scribble(&self, blocks: &[u32]) {
        let page = vec![0x5a; usize::try_from(self.shape.page()).expect("fits")];
        for offset in blocks.iter().flat_map(|block| self.pages(*block)) {
            self.region.write(offset, &page).expect("inside the region");
        }
    }

    fn pages(&self, block: u32) -> impl Iterator<Item = u64> + use<> {
        let (layer_stride, block_stride) = self.shape.strides(self.order);
        (0..u64::from(self.shape.layers)).map(move |layer| layer * layer_stride + u64::from(block) * block_stride)
    }

    pub(crate) fn grant(&self, request: &str, blocks: &[u32], lease_ms: u64) -> Granted {
        self.scheduler.grant(request, &[blocks.to_vec()], lease_ms, &[]).expect("grant")
    }

    /// Redeems the first blocks of a ticket into `targets`.
    pub(crate) fn redeem(&self, ticket: &str, targets: &[u32]) -> u64 {
        self.redeem_within(ticket, targets, 20_000)
    }

    pub(crate) fn redeem_within(&self, ticket: &str, targets: &[u32], deadline_ms: u64) -> u64 {
        let positions = (0..).take(targets.len()).collect();
        let wanted = WantedBlocks { positions, targets: targets.to_vec() };
        self.worker.redeem("request", ticket, &[wanted], deadline_ms, &[])
    }

    /// The outcome of a redeem: `None` when delivered, else why not.
    pub(crate) fn outcome(&mut self, key: u64) -> Option<String> {
        let done = self.wait(|event| matches!(event, Event::TransferDone { key: of, .. } if *of == key));
        let Event::TransferDone { failure, .. } = done else { unreachable!("waited for it") };
        failure
    }

    /// Waits for the end of a lease, and says why it ended.
    pub(crate) fn lease_end(&mut self, lease: u64) -> String {
        let ended = self.wait(|event| matches!(event, Event::LeaseEnded { lease_id, .. } if *lease_id == lease));
        let Event::LeaseEnded { reason, .. } = ended else { unreachable!("waited for it") };
        reason
    }

    /// Stores blocks as a chain behind `parent`, without a word on whether they changed: the outcome.
    pub(crate) fn store(
        &mut self,
        parent: Option<BlockHash>,
        hashes: &[BlockHash],
        blocks: &[u32],
    ) -> (u64, Option<String>) {
        let group = StoredBlocks { parent, hashes: hashes.to_vec(), blocks: blocks.to_vec() };
        let key = self.worker.store("request", &[group], self.tenant.as_bytes());
        let copied = self.wait(|event| matches!(event, Event::Copied { key: of, .. } if *of == key));
        let Event::Copied { failure, .. } = copied else { unreachable!("waited for it") };
        (key, failure)
    }

    /// Vouches for a store: how many blocks were new.
    pub(crate) fn commit(&mut self, key: u64) -> u64 {
        self.worker.commit(key);
        let stored = self.wait(|event| matches!(event, Event::Stored { key: of, .. } if *of == key));
        let Event::Stored { blocks, .. } = stored else { unreachable!("waited for it") };
        blocks
    }

    /// How many of a prompt's first blocks the tiers have, and under which key.
    pub(crate) fn lookup(&self, hashes: &[BlockHash]) -> (u64, u32) {
        let key = self.scheduler.lookup("request", &[hashes.to_vec()]);
        let held = wait(
            || "the answer to a lookup".to_owned(),
            || {
                self.scheduler.poll().into_iter().find_map(|event| match event {
                    Event::Found { key: of, held, failure, .. } if of == key => {
                        assert_eq!(failure, None);
                        held.first().copied()
                    }
                    _ => None,
                })
            },
        );
        (key, held)
    }

    /// Loads blocks of a lookup: `None` when all are there.
    pub(crate) fn load(&mut self, claim: u64, hashes: &[BlockHash], blocks: &[u32]) -> Option<String> {
        let group = LoadedBlocks { hashes: hashes.to_vec(), blocks: blocks.to_vec() };
        let key = self.worker.load("request", claim, &[group], 10_000);
        let loaded = self.wait(|event| matches!(event, Event::Loaded { key: of, .. } if *of == key));
        let Event::Loaded { failure, .. } = loaded else { unreachable!("waited for it") };
        failure
    }

    /// Waits for an event of the worker and takes it.
    pub(crate) fn wait(&mut self, wanted: impl Fn(&Event) -> bool) -> Event {
        let Self { name, worker, seen, .. } = self;
        let seen = std::cell::RefCell::new(seen);
        wait(
            || format!("an event of {name}; it saw {:?}", seen.borrow()),
            || {
                let mut seen = seen.borrow_mut();
                seen.extend(worker.poll());
                let at = seen.iter().position(&wanted)?;
                Some(seen.remove(at))
            },
        )
    }

    /// Events that came and were not waited for.
    pub(crate) fn rest(&mut self) -> Vec<Event> {
        self.seen.extend(self.worker.poll());
        std::mem::take(&mut self.seen)
    }

    pub(crate) fn sums(&self, daemon: &Daemon, blocks: &[u32]) -> Vec<u32> {
        daemon.operator().checksums(&self.name, 0, 0, blocks).expect("checksums")
    }
}

fn noise(seed: u64, count: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(usize::try_from(count / 8).expect("fits")).flatten().collect()
}
