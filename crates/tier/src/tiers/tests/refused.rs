//! What is refused leaves nothing behind.

use super::*;

/// An engine with a second cache group, whose blocks are larger than a chunk of host memory.
fn device_of_two_groups() -> Arc<Device> {
    const LARGE: u64 = 2 << 20;
    let small = device(0, 1);
    let first = small.group(0).expect("a group").groups()[0].clone();
    let begin = small.region().len();
    let second = LayerSpan {
        layer_count: 1,
        offset: begin,
        layer_stride: LARGE * u64::from(BLOCKS),
        block_stride: LARGE,
        head_count: 1,
        token_count: 1,
        content_bytes: u32::try_from(LARGE).expect("small"),
    };
    let bytes = begin + LARGE * u64::from(BLOCKS);
    let groups = vec![first, GroupLayout { spans: vec![second] }];
    let layout = Layout::new(AxisOrder::Lbhnc, BLOCKS, bytes, groups).expect("a layout");
    // Nobody touches it: it takes no memory.
    let region = Region::map(kvferry_memory::create("kvferry-tiers", bytes).expect("memory"), bytes, &Meter::new());
    Arc::new(Device::new(small.fingerprint(), Rank(0), region.expect("a region"), &layout).expect("a device"))
}

#[test]
fn a_lookup_that_is_refused_for_its_second_group_holds_nothing_of_the_first() {
    let mut node = Node::new();
    let (engine, hybrid) = (device(0, 1), device_of_two_groups());
    assert_eq!(node.keep(at(0), &engine, None, &[(1, 0), (2, 1)]), 2);
    let claim = node.work();
    let groups = vec![vec![hash(1), hash(2)], vec![hash(1)]];
    node.tiers.lookup(at(1), claim, &Lookup { devices: vec![hybrid], groups });
    let failure = Some(TierFailure::Request);
    let found = TierEvent::Found { claim, held: vec![0, 0], on_disk: vec![0, 0], failure };
    assert_eq!(node.run(at(1)), [found, TierEvent::Released { claim }]);
    assert_eq!(node.tiers.open(), (0, 0, 0));
    node.tiers.clear(at(2), &[engine]);
    node.run(at(2));
    assert_eq!(node.tiers.host().blocks(), 0, "nobody holds them");
}
