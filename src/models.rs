//! Model shapes by name, for synthetic KV.

use anyhow::{Result, bail, ensure};
use kvferry_client::{GroupLayout, LayerSpan, Layout};

/// What decides the size of a model's KV cache.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Model {
    pub(crate) name: &'static str,
    pub(crate) layers: u32,
    /// KV heads; 1 for latent attention.
    pub(crate) heads: u32,
    /// Bytes of one token of one head in one layer, K and V together, bfloat16.
    pub(crate) content_bytes: u32,
}

/// Layers, KV heads and head sizes are those of each model's published config.json.
pub(crate) const MODELS: [Model; 7] = [
    Model { name: "deepseek-v3", layers: 61, heads: 1, content_bytes: 576 * 2 },
    Model { name: "llama-3.1-405b", layers: 126, heads: 8, content_bytes: 2 * 128 * 2 },
    Model { name: "llama-3.1-70b", layers: 80, heads: 8, content_bytes: 2 * 128 * 2 },
    Model { name: "llama-3.1-8b", layers: 32, heads: 8, content_bytes: 2 * 128 * 2 },
    Model { name: "qwen3-32b", layers: 64, heads: 8, content_bytes: 2 * 128 * 2 },
    Model { name: "qwen3-8b", layers: 36, heads: 8, content_bytes: 2 * 128 * 2 },
    Model { name: "smollm2-135m", layers: 30, heads: 3, content_bytes: 2 * 64 * 2 },
];

impl Model {
    /// The model of this name, or an error that lists the known ones.
    pub(crate) fn named(name: &str) -> Result<Self> {
        let Some(model) = MODELS.iter().find(|model| model.name == name) else {
            let known: Vec<_> = MODELS.iter().map(|model| model.name).collect();
            bail!("no model {name:?} is known; one of {}", known.join(", "));
        };
        Ok(*model)
    }

    /// The part of one of `ranks` tensor parallel ranks, as vLLM cuts it: each holds some of the heads, or a copy of one
    /// where there are more ranks than heads.
    pub(crate) fn shared_by(self, ranks: u32) -> Result<Self> {
        let divides = ranks > 0 && (self.heads.is_multiple_of(ranks) || ranks.is_multiple_of(self.heads));
        ensure!(divides, "{} KV heads of {} cannot be shared by {ranks} ranks", self.heads, self.name);
        Ok(Self { heads: (self.heads / ranks).max(1), ..self })
    }

    /// Bytes of one layer's share of one block.
    pub(crate) fn page_bytes(&self, block_tokens: u32) -> u64 {
        u64::from(self.heads) * u64::from(block_tokens) * u64::from(self.content_bytes)
    }

    /// Bytes of one block, all layers.
    pub(crate) fn block_bytes(&self, block_tokens: u32) -> u64 {
        self.page_bytes(block_tokens) * u64::from(self.layers)
    }

    /// vLLM's layout on CPU (LBHNC): layer after layer, each with all blocks.
    pub(crate) fn layout(&self, block_count: u32, block_tokens: u32) -> Layout {
        let page = self.page_bytes(block_tokens);
        let span = LayerSpan {
            layer_count: self.layers,
            offset: 0,
            layer_stride: page * u64::from(block_count),
            block_stride: page,
            head_count: self.heads,
            token_count: block_tokens,
            content_bytes: self.content_bytes,
        };
        Layout {
            order: "LBHNC".to_owned(),
            block_count,
            region_bytes: page * u64::from(block_count) * u64::from(self.layers),
            groups: vec![GroupLayout { spans: vec![span] }],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_the_published_ones() {
        // 320 KiB a token for a 70B model with 8 KV heads in bfloat16.
        assert_eq!(Model::named("llama-3.1-70b").expect("known").block_bytes(1), 320 << 10);
        assert_eq!(Model::named("smollm2-135m").expect("known").block_bytes(2), 45 << 10);
        let said = Model::named("gpt-5").expect_err("unknown").to_string();
        assert!(said.contains("llama-3.1-8b"), "{said}");
    }

    #[test]
    fn ranks_share_heads() {
        let model = Model::named("llama-3.1-70b").expect("known");
        assert_eq!(model.shared_by(2).expect("4 heads each").heads, 4);
        assert_eq!(model.shared_by(16).expect("a copy each").heads, 1);
        assert_eq!(Model::named("deepseek-v3").expect("known").shared_by(8).expect("latent").heads, 1);
        for bad in [0, 3, 12] {
            model.shared_by(bad).expect_err("no whole heads");
        }
    }
}
