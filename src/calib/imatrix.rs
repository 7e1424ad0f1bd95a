//! Importance matrices of llama.cpp: Σ x² of each tensor's input, in a GGUF file.
//!
//! For a tensor `NAME` there are `NAME.in_sum2` `[experts, in]` and `NAME.counts` `[experts]`, sums
//! over tokens and their numbers. Tensors are called by llama.cpp's names.

use std::path::Path;

use super::error::{CalibError, Result};
use super::file::SiteStatistics;
use super::gguf::{Gguf, Value};
use super::metadata::{DataFile, Metadata, ModelId, Protocol, SiteInput, Source, VERSION};
use crate::ir::site::layer_of;

const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";

/// Ends of names: here, and in llama.cpp.
const NAMES: [(&str, &str); 35] = [
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.qkv_proj", "attn_qkv"),
    ("self_attn.out_proj", "attn_output"),
    ("self_attn.dense", "attn_output"),
    ("attn.c_attn", "attn_qkv"),
    ("attn.c_proj", "attn_output"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("mlp.gate_up_proj", "ffn_up"),
    ("mlp.c_fc", "ffn_up"),
    ("mlp.c_proj", "ffn_down"),
    ("mlp.fc1", "ffn_up"),
    ("mlp.fc2", "ffn_down"),
    ("mlp.gate", "ffn_gate_inp"),
    ("block_sparse_moe.gate", "ffn_gate_inp"),
    ("experts.gate_proj", "ffn_gate_exps"),
    ("experts.up_proj", "ffn_up_exps"),
    ("experts.down_proj", "ffn_down_exps"),
    ("experts.gate_up_proj", "ffn_up_exps"),
    ("experts.w1", "ffn_gate_exps"),
    ("experts.w3", "ffn_up_exps"),
    ("experts.w2", "ffn_down_exps"),
    ("shared_expert.gate_proj", "ffn_gate_shexp"),
    ("shared_expert.up_proj", "ffn_up_shexp"),
    ("shared_expert.down_proj", "ffn_down_shexp"),
    ("attention.self.query", "attn_q"),
    ("attention.self.key", "attn_k"),
    ("attention.self.value", "attn_v"),
    ("attention.output.dense", "attn_output"),
    ("intermediate.dense", "ffn_up"),
    ("output.dense", "ffn_down"),
];

/// llama.cpp's names for a site, and which expert of the tensor it is.
pub fn names_of(site: &str) -> Option<(Vec<String>, Option<usize>)> {
    if matches!(site, "lm_head" | "model.embed_tokens") {
        let both = ["output.weight", "token_embd.weight"];
        return Some((both.map(str::to_string).to_vec(), None));
    }
    let layer = layer_of(site)?;
    let parts: Vec<&str> = site.split('.').collect();
    let experts = parts.iter().position(|p| *p == "experts");
    let expert = experts.and_then(|at| parts.get(at + 1)?.parse().ok());
    let bare: Vec<&str> = match (experts, expert) {
        (Some(at), Some(_)) => {
            let kept = parts.iter().enumerate().filter(|(i, _)| *i != at + 1);
            kept.map(|(_, p)| *p).collect()
        }
        _ => parts,
    };
    let bare = bare.join(".");
    let ends = |(ours, _): &&(&str, &str)| {
        bare.strip_suffix(ours)
            .is_some_and(|rest| rest.ends_with('.'))
    };
    let (_, theirs) = NAMES.iter().find(ends)?;
    Some((vec![format!("blk.{layer}.{theirs}.weight")], expert))
}

/// An importance matrix.
#[derive(Debug)]
pub struct Imatrix {
    gguf: Gguf,
}

impl Imatrix {
    /// Opens a file, and says what it holds: sites are its tensors, by llama.cpp's names.
    ///
    /// # Errors
    /// It is a GGUF file of something else.
    pub fn open(path: &Path) -> Result<(Self, Metadata)> {
        let gguf = Gguf::open(path)?;
        let tensors = gguf.names().filter_map(|name| name.strip_suffix(SUMS));
        let sites = tensors.map(|name| {
            let input = SiteInput {
                inputs: vec![name.to_string()],
                ..SiteInput::default()
            };
            (name.to_string(), input)
        });
        let sites: std::collections::BTreeMap<_, _> = sites.collect();
        if sites.is_empty() {
            let what = match gguf.values.get("general.type") {
                Some(Value::Text(kind)) => format!("is a GGUF file of type {kind:?}, "),
                _ => "is a GGUF file ".to_string(),
            };
            let problem = format!("{what}without an importance matrix; llama-imatrix makes one");
            return Err(CalibError::format(path, problem));
        }
        let number = |key: &str| match gguf.values.get(key) {
            Some(Value::Number(n)) => *n,
            _ => 0,
        };
        let (chunks, size) = (number("imatrix.chunk_count"), number("imatrix.chunk_size"));
        let data = match gguf.values.get("imatrix.datasets") {
            Some(Value::Texts(names)) => names.clone(),
            _ => Vec::new(),
        };
        let small = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let run = Source {
            data: data
                .into_iter()
                .map(|name| DataFile {
                    name,
                    sha256: String::new(),
                })
                .collect(),
            protocol: Protocol {
                context: small(size),
                windows: small(chunks),
                lines: false,
                bos: None,
                seed: 0,
            },
            tokenizer: None,
            windows: small(chunks),
            tokens: chunks.saturating_mul(size),
            token_hash: String::new(),
        };
        let metadata = Metadata {
            version: VERSION,
            model: ModelId {
                name: "a model of llama.cpp".to_string(),
                fingerprint: String::new(),
            },
            runs: vec![run],
            sites,
        };
        Ok((Self { gguf }, metadata))
    }

    /// The tensor that speaks of a site, by its own name or ours, and the expert.
    fn tensor(&self, site: &str) -> Option<(String, Option<usize>)> {
        let known = |name: &str| self.gguf.dims(&format!("{name}{SUMS}")).is_some();
        if known(site) {
            return Some((site.to_string(), None));
        }
        let (names, expert) = names_of(site)?;
        Some((names.into_iter().find(|name| known(name))?, expert))
    }

    /// Width of a site's input.
    pub fn width(&self, site: &str) -> Option<u64> {
        let (name, _) = self.tensor(site)?;
        self.gguf.dims(&format!("{name}{SUMS}"))?.first().copied()
    }

    /// The diagonal of a site's input; of all experts together where the site is their tensor.
    ///
    /// # Errors
    /// The tensors do not fit each other, or hold what is no sum of squares.
    pub fn site(&self, path: &Path, site: &str) -> Result<Option<SiteStatistics>> {
        let Some((name, expert)) = self.tensor(site) else {
            return Ok(None);
        };
        let damaged = |what: &str| CalibError::format(path, format!("{name}: {what}"));
        let dims = self.gguf.dims(&format!("{name}{SUMS}")).unwrap_or_default();
        let size = |at: usize| dims.get(at).map_or(Some(1), |&d| usize::try_from(d).ok());
        let sizes = size(0)
            .zip(size(1))
            .filter(|(n, e)| n.checked_mul(*e).is_some());
        let (n, experts) = sizes.ok_or_else(|| damaged("its shape is too large"))?;
        let chosen = match expert {
            Some(e) if e >= experts => return Err(damaged("it has fewer experts than the model")),
            Some(e) => e..e + 1,
            None => 0..experts,
        };
        let counts = self
            .gguf
            .floats(&format!("{name}{COUNTS}"), chosen.clone())?;
        let counts = counts.ok_or_else(|| damaged("its counts are missing"))?;
        if counts.iter().any(|c| !c.is_finite() || *c < 0.0) {
            return Err(damaged("its counts are no numbers of tokens"));
        }
        let tokens = counts
            .iter()
            .map(|c| *c as u64)
            .fold(0u64, u64::saturating_add);
        // Nothing is allocated by what the header says alone: a row that the file has not is refused.
        let mut diag: Option<Vec<f32>> = None;
        for e in chosen {
            let row = self
                .gguf
                .floats(&format!("{name}{SUMS}"), e * n..(e + 1) * n)?;
            let row = row.unwrap_or_default();
            if row.iter().any(|d| !d.is_finite() || *d < 0.0) {
                return Err(damaged("it holds what is no sum of squares"));
            }
            match &mut diag {
                None => diag = Some(row),
                Some(diag) => diag.iter_mut().zip(row).for_each(|(a, b)| *a += b),
            }
        }
        let diag = diag.ok_or_else(|| damaged("it has no experts"))?;
        Ok(Some(SiteStatistics {
            hessian: None,
            diag,
            tokens,
            routed: expert.map(|_| tokens),
            borrowed: 0,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_llamas() {
        let one = |site: &str| {
            let (names, expert) = names_of(site)?;
            Some((names.first()?.clone(), expert))
        };
        let q = one("model.layers.3.self_attn.q_proj");
        assert_eq!(q, Some(("blk.3.attn_q.weight".to_string(), None)));
        let down = one("model.layers.1.mlp.experts.17.down_proj");
        assert_eq!(
            down,
            Some(("blk.1.ffn_down_exps.weight".to_string(), Some(17)))
        );
        let o = one("encoder.layer.5.attention.output.dense");
        assert_eq!(o, Some(("blk.5.attn_output.weight".to_string(), None)));
        assert_eq!(one("lm_head"), Some(("output.weight".to_string(), None)));
        assert_eq!(one("model.layers.3.something"), None);
        assert_eq!(one(""), None);
    }
}
