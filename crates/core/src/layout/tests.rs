//! Layouts as vLLM makes them, and near misses.

use super::*;

/// Layers, offset, layer stride, block stride; pages of 2 heads x 3 tokens x 4 bytes.
fn span(layer_count: u32, offset: u64, layer_stride: u64, block_stride: u64) -> LayerSpan {
    LayerSpan { layer_count, offset, layer_stride, block_stride, head_count: 2, token_count: 3, content_bytes: 4 }
}

fn layout(order: AxisOrder, region_bytes: u64, groups: &[&[LayerSpan]]) -> Result<Layout, LayoutError> {
    let groups = groups.iter().map(|spans| GroupLayout { spans: spans.to_vec() }).collect();
    Layout::new(order, 5, region_bytes, groups)
}

fn strides(order: AxisOrder, span: LayerSpan) -> (u64, u64) {
    let layout = layout(order, 1 << 20, &[&[span]]).unwrap();
    let layer = layout.layers(0).next().unwrap();
    (layer.head.stride, layer.token.stride)
}

#[test]
fn orders_have_the_names_of_the_engine() {
    for order in AxisOrder::ALL {
        assert_eq!(order.to_string().parse(), Ok(order));
    }
    let unknown = "NHD".parse::<AxisOrder>().unwrap_err();
    assert_eq!(
        unknown.to_string(),
        "unknown axis order \"NHD\": known are BHLNC, BLHNC, BLNHC, LBHNC, LBNHC and LHBNC"
    );
    assert!("lbhnc".parse::<AxisOrder>().is_err());
    assert_eq!("x".repeat(1 << 20).parse::<AxisOrder>().unwrap_err().found.len(), 16);
}

#[test]
fn heads_and_tokens_lie_as_the_order_says() {
    // Three layers, five blocks, pages of 24 bytes.
    assert_eq!(strides(AxisOrder::Lbhnc, span(3, 0, 120, 24)), (12, 4));
    assert_eq!(strides(AxisOrder::Lbnhc, span(3, 0, 120, 24)), (4, 8));
    assert_eq!(strides(AxisOrder::Blhnc, span(3, 0, 24, 72)), (12, 4));
    assert_eq!(strides(AxisOrder::Blnhc, span(3, 0, 24, 72)), (4, 8));
    assert_eq!(strides(AxisOrder::Bhlnc, span(3, 0, 12, 72)), (36, 4));
    assert_eq!(strides(AxisOrder::Lhbnc, span(3, 0, 120, 12)), (60, 4));
}

#[test]
fn a_layout_may_fill_its_region_and_no_more() {
    let spans = [span(3, 7, 120, 24)];
    let laid = layout(AxisOrder::Lbhnc, 367, &[&spans]).unwrap();
    assert_eq!((laid.order(), laid.block_count(), laid.region_bytes()), (AxisOrder::Lbhnc, 5, 367));
    assert_eq!(laid.groups(), [GroupLayout { spans: spans.to_vec() }]);
    assert_eq!((laid.bytes_per_block(0), laid.bytes_per_block(1)), (Some(72), None));
    assert_eq!(
        layout(AxisOrder::Lbhnc, 366, &[&spans]),
        Err(LayoutError::OutsideRegion { group: 0, span: 0, region_bytes: 366 })
    );
    for far in
        [span(3, u64::MAX, 120, 24), span(3, 0, u64::MAX, 24), span(2, 0, u64::MAX, 24), span(3, 0, 120, u64::MAX)]
    {
        assert!(layout(AxisOrder::Lbhnc, REGION_BYTES_MAX, &[&[far]]).is_err());
    }
}

#[test]
fn the_stride_of_a_single_layer_is_not_looked_at() {
    assert!(layout(AxisOrder::Lbhnc, 120, &[&[span(1, 0, 0, 24)]]).is_ok());
    assert!(layout(AxisOrder::Lbhnc, 120, &[&[span(1, 0, u64::MAX, 24)]]).is_ok());
}

#[test]
fn strides_must_nest_in_the_order() {
    let refused = |axis, order| Err(LayoutError::AxesOverlap { group: 0, span: 0, axis, order });
    let (layers_first, blocks_first) = (AxisOrder::Lbhnc, AxisOrder::Blhnc);
    assert_eq!(layout(layers_first, 999, &[&[span(3, 0, 120, 23)]]), refused(Axis::Block, layers_first));
    assert_eq!(layout(layers_first, 999, &[&[span(3, 0, 119, 24)]]), refused(Axis::Layer, layers_first));
    assert_eq!(layout(blocks_first, 999, &[&[span(3, 0, 120, 24)]]), refused(Axis::Block, blocks_first));
    // Heads of BHLNC follow from the layers.
    let order = AxisOrder::Bhlnc;
    assert_eq!(layout(order, 999, &[&[span(3, 0, 11, 72)]]), refused(Axis::Layer, order));
    assert_eq!(layout(order, 999, &[&[span(1, 0, 11, 72)]]), refused(Axis::Head, order));
}

#[test]
fn spans_of_a_group_must_not_share_bytes() {
    let shared = Err(LayoutError::SpansOverlap { group: 0, span: 1, other: 0 });
    // Side by side in each block, then one byte too near, on either side.
    assert!(layout(AxisOrder::Blhnc, 600, &[&[span(2, 0, 24, 120), span(3, 48, 24, 120)]]).is_ok());
    assert_eq!(layout(AxisOrder::Blhnc, 600, &[&[span(2, 0, 24, 120), span(2, 47, 24, 120)]]), shared);
    assert_eq!(layout(AxisOrder::Blhnc, 700, &[&[span(2, 0, 24, 120), span(2, 73, 24, 120)]]), shared);
    // Layers of two spans in turn, as heads and blocks of one fit between those of the other.
    assert!(layout(AxisOrder::Lbhnc, 600, &[&[span(3, 0, 240, 24), span(2, 120, 240, 24)]]).is_ok());
    assert!(layout(AxisOrder::Lhbnc, 600, &[&[span(3, 0, 240, 12), span(2, 120, 240, 12)]]).is_ok());
    assert!(layout(AxisOrder::Bhlnc, 600, &[&[span(2, 0, 12, 120), span(2, 48, 12, 120)]]).is_ok());
    assert_eq!(layout(AxisOrder::Lbhnc, 600, &[&[span(3, 0, 240, 24), span(2, 119, 240, 24)]]), shared);
}

#[test]
fn groups_may_share_bytes_and_how_is_known() {
    let overlay = |order, a: LayerSpan, b: LayerSpan| {
        let laid = layout(order, 1 << 20, &[&[a], &[b]]).unwrap();
        assert_eq!(laid.overlay(0, 1), laid.overlay(1, 0));
        laid.overlay(0, 1)
    };
    let (layers, blocks) = (AxisOrder::Lbhnc, AxisOrder::Blhnc);
    // As vLLM makes them: every group from byte zero, blocks or layers in step.
    assert_eq!(overlay(blocks, span(2, 0, 24, 120), span(5, 0, 24, 120)), Overlay::SameBlock);
    assert_eq!(overlay(layers, span(4, 0, 120, 24), span(3, 0, 120, 24)), Overlay::SameBlock);
    assert_eq!(overlay(AxisOrder::Lhbnc, span(4, 0, 120, 12), span(3, 0, 120, 12)), Overlay::SameBlock);
    assert_eq!(overlay(AxisOrder::Bhlnc, span(4, 0, 12, 120), span(3, 0, 12, 120)), Overlay::SameBlock);
    assert_eq!(overlay(layers, span(4, 0, 120, 24), span(3, 240, 120, 24)), Overlay::SameBlock);
    // One block further, or half a page.
    assert_eq!(overlay(layers, span(4, 0, 120, 24), span(3, 24, 120, 24)), Overlay::OutOfStep);
    assert_eq!(overlay(layers, span(4, 0, 120, 24), span(3, 12, 120, 24)), Overlay::OutOfStep);
    assert_eq!(overlay(blocks, span(2, 0, 24, 120), span(2, 100, 24, 120)), Overlay::OutOfStep);
    // Different strides.
    assert_eq!(overlay(blocks, span(2, 0, 24, 120), span(2, 0, 24, 121)), Overlay::OutOfStep);
    assert_eq!(overlay(layers, span(2, 0, 120, 24), span(2, 0, 121, 24)), Overlay::OutOfStep);
    // Apart as a whole, or in each block.
    assert_eq!(overlay(layers, span(2, 0, 120, 24), span(2, 240, 130, 25)), Overlay::Disjoint);
    assert_eq!(overlay(blocks, span(2, 0, 24, 120), span(2, 48, 24, 120)), Overlay::Disjoint);
}

#[test]
fn comparing_groups_takes_few_steps_whatever_their_shape() {
    // One group's page holds two thousand million heads of the other: they are not compared one by one.
    let group = |head_count, content_bytes| {
        let span = LayerSpan { head_count, token_count: 1, content_bytes, ..span(1, 0, 0, 1 << 32) };
        GroupLayout { spans: vec![span] }
    };
    let groups = vec![group(1 << 31, 2), group(1, u32::MAX)];
    let laid = Layout::new(AxisOrder::Lbhnc, 5, 1 << 40, groups).unwrap();
    assert_eq!(laid.overlay(0, 1), Overlay::SameBlock);
}

#[test]
fn counts_have_limits() {
    let one = GroupLayout { spans: vec![span(1, 0, 0, 24)] };
    let new = |block_count, groups| Layout::new(AxisOrder::Lbhnc, block_count, 1 << 40, groups);
    assert_eq!(new(0, vec![one.clone()]), Err(LayoutError::BlockCount { block_count: 0 }));
    assert_eq!(new(BLOCKS_MAX + 1, vec![one.clone()]), Err(LayoutError::BlockCount { block_count: BLOCKS_MAX + 1 }));
    assert!(new(BLOCKS_MAX, vec![one.clone()]).is_ok());
    assert_eq!(new(1, Vec::new()), Err(LayoutError::GroupCount { group_count: 0 }));
    assert_eq!(new(1, vec![one.clone(); 65]), Err(LayoutError::GroupCount { group_count: 65 }));
    assert!(new(1, vec![one.clone(); GROUPS_MAX]).is_ok());
    assert_eq!(new(1, vec![one.clone(), GroupLayout::default()]), Err(LayoutError::EmptyGroup { group: 1 }));
    let spans = |count: u64| GroupLayout { spans: (0..count).map(|number| span(1, number * 24, 0, 24)).collect() };
    assert!(new(1, vec![spans(256), spans(256)]).is_ok());
    assert_eq!(new(1, vec![spans(256), spans(257)]), Err(LayoutError::TooManySpans { span_count: 513 }));
    let deep = GroupLayout { spans: vec![span(LAYERS_MAX, 0, 24, 24)] };
    assert!(new(1, vec![deep.clone()]).is_ok());
    assert_eq!(new(1, vec![deep, one]), Err(LayoutError::TooManyLayers { layer_count: 1025 }));
    let endless = GroupLayout { spans: vec![span(u32::MAX, 0, 24, 24); 2] };
    assert!(matches!(new(1, vec![endless]), Err(LayoutError::TooManyLayers { .. })));
    assert_eq!(
        Layout::new(AxisOrder::Lbhnc, 1, REGION_BYTES_MAX + 1, vec![spans(1)]),
        Err(LayoutError::RegionTooLarge { region_bytes: REGION_BYTES_MAX + 1 })
    );
    let zeros = [
        LayerSpan { layer_count: 0, ..span(1, 0, 0, 24) },
        LayerSpan { head_count: 0, ..span(1, 0, 0, 24) },
        LayerSpan { token_count: 0, ..span(1, 0, 0, 24) },
        LayerSpan { content_bytes: 0, ..span(1, 0, 0, 24) },
    ];
    for zero in zeros {
        assert_eq!(layout(AxisOrder::Lbhnc, 999, &[&[zero]]), Err(LayoutError::ZeroCount { group: 0, span: 0 }));
    }
}
