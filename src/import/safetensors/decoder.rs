//! The decoder that most families share: pre-norm blocks of rotary attention and a gated MLP.
//!
//! A family's file says which of the choices below it makes; the graph is built here, once.

use super::builder::{Builder, LinearSpec};
use super::config::Fields;
use super::experts::Experts;
use super::rope::Rope;
use super::{Stop, unsupported};
use crate::ir::{Activation, Native, Role, ValueId, WeightId, WeightView};

/// Which layers see only a window of the latest positions.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Sliding {
    /// All, where the window is set.
    All,
    /// Those from this one on.
    From(u64),
    /// All but every n-th: of 6, layers 5, 11, 17, … see everything.
    AllButEvery(u64),
    /// As `layer_types` lists.
    Listed(Vec<bool>),
}

/// A decoder's choices.
#[derive(Clone, Debug)]
pub(super) struct Decoder {
    pub(super) hidden: u64,
    pub(super) inner: u64,
    pub(super) layers: u64,
    pub(super) heads: u64,
    pub(super) kv_heads: u64,
    pub(super) head_dim: u64,
    pub(super) vocab: u64,
    /// Epsilon of the norms.
    pub(super) eps: f64,
    /// Norms store gain − 1.
    pub(super) unit_offset: bool,
    pub(super) activation: Activation,
    /// Bias of q, k and v.
    pub(super) qkv_bias: bool,
    /// Bias of the attention's output.
    pub(super) out_bias: bool,
    /// Biases of the MLP.
    pub(super) mlp_bias: bool,
    /// Norms of each head of q and k, before the rotation.
    pub(super) qk_norm: bool,
    /// Norms behind attention and MLP too, before the residual is added.
    pub(super) sandwich: bool,
    /// Factor on the embeddings.
    pub(super) embed_scale: Option<f64>,
    /// Factor on q·k.
    pub(super) attn_scale: f64,
    pub(super) attn_softcap: Option<f64>,
    pub(super) final_softcap: Option<f64>,
    /// How many latest positions sliding layers see.
    pub(super) window: Option<u64>,
    pub(super) sliding: Sliding,
    pub(super) rope: Rope,
    /// Rotation in sliding layers, where it differs.
    pub(super) sliding_rope: Option<Rope>,
    /// Whether the head is the embedding's table.
    pub(super) tied: bool,
    /// Mixture of experts in place of the MLP of some layers.
    pub(super) experts: Option<Experts>,
}

/// Defaults in which the families' classes differ.
pub(super) struct Defaults {
    /// Key and value heads; `None` is as many as there are heads.
    pub(super) kv_heads: Option<u64>,
    /// Width of a head; `None` is hidden / heads.
    pub(super) head_dim: Option<u64>,
    pub(super) eps: f64,
    pub(super) theta: f64,
    pub(super) tied: bool,
}

impl Decoder {
    /// What all families read alike; a family changes the rest.
    pub(super) fn read(f: &Fields<'_>, d: &Defaults) -> Result<Self, Stop> {
        let hidden = f.required("hidden_size")?;
        let heads = f.required("num_attention_heads")?;
        let kv_heads = f
            .nullable("num_key_value_heads", d.kv_heads)?
            .unwrap_or(heads);
        let head_dim = match f.nullable("head_dim", d.head_dim)? {
            Some(dim) => dim,
            None if hidden % heads == 0 => hidden / heads,
            None => {
                let problem = format!("is {heads}, which doesn't divide hidden_size {hidden}");
                return Err(f.fault("num_attention_heads", problem).into());
            }
        };
        if heads % kv_heads != 0 {
            let problem = format!("is {kv_heads}, which doesn't divide the {heads} heads");
            return Err(f.fault("num_key_value_heads", problem).into());
        }
        if head_dim % 2 != 0 {
            return Err(f
                .fault("head_dim", format!("is {head_dim}; rotation needs it even"))
                .into());
        }
        Ok(Self {
            hidden,
            inner: f.required("intermediate_size")?,
            layers: f.required("num_hidden_layers")?,
            heads,
            kv_heads,
            head_dim,
            vocab: f.required("vocab_size")?,
            eps: f.number("rms_norm_eps")?.unwrap_or(d.eps),
            unit_offset: false,
            activation: activation(f, "hidden_act", "silu")?,
            qkv_bias: false,
            out_bias: false,
            mlp_bias: false,
            qk_norm: false,
            sandwich: false,
            embed_scale: None,
            attn_scale: (head_dim as f64).powf(-0.5),
            attn_softcap: None,
            final_softcap: None,
            window: None,
            sliding: Sliding::All,
            rope: Rope::read(f, "full_attention", "rope_theta", d.theta)?,
            sliding_rope: None,
            tied: f.flag("tie_word_embeddings", d.tied)?,
            experts: None,
        })
    }

    fn slides(&self, layer: u64) -> bool {
        self.window.is_some()
            && match &self.sliding {
                Sliding::All => true,
                Sliding::From(first) => layer >= *first,
                Sliding::AllButEvery(n) => !(layer + 1).is_multiple_of(*n),
                Sliding::Listed(listed) => usize::try_from(layer)
                    .ok()
                    .and_then(|i| listed.get(i))
                    .copied()
                    .unwrap_or(false),
            }
    }
}

/// The function that a field names.
pub(super) fn activation(f: &Fields<'_>, name: &str, default: &str) -> Result<Activation, Stop> {
    match f.activation(name, default)? {
        Ok(function) => Ok(function),
        Err(what) => unsupported(what),
    }
}

/// `layer_types`, or else the class's rule.
pub(super) fn layer_types(f: &Fields<'_>, layers: u64, rule: Sliding) -> Result<Sliding, Stop> {
    let Some(listed) = f.texts("layer_types")? else {
        return Ok(rule);
    };
    if (listed.len() as u64) < layers {
        let problem = format!("has {} entries for {layers} layers", listed.len());
        return Err(f.fault("layer_types", problem).into());
    }
    let mut sliding = Vec::with_capacity(listed.len());
    for word in listed {
        sliding.push(match word {
            "sliding_attention" => true,
            "full_attention" => false,
            other => return unsupported(format!("layer type `{other}`")),
        });
    }
    Ok(Sliding::Listed(sliding))
}

/// Where a checkpoint's names start, and whether there is a head.
pub(super) struct Layout<'a> {
    /// What names begin with: `model.`
    pub(super) prefix: &'a str,
    /// The head's module, where the checkpoint has a tensor for it.
    pub(super) head: Option<&'a str>,
    /// Whether the architecture has a head over the vocabulary.
    pub(super) causal: bool,
}

/// Builds the whole graph: `input_ids` to `logits`, or to `last_hidden_state` without a head.
pub(super) fn build(b: &mut Builder, d: &Decoder, layout: &Layout<'_>) {
    let prefix = layout.prefix;
    let ids = b.ids("input_ids");
    let (mut x, table) = b.embedding(ids, &format!("{prefix}embed_tokens"), d.vocab, d.hidden);
    if let Some(factor) = d.embed_scale {
        x = b.apply("", Native::Scale { factor }, &[x]);
    }
    let positions = b.apply("", Native::Positions, &[ids]);
    for layer in 0..d.layers {
        let path = format!("{prefix}layers.{layer}");
        x = attention(b, d, x, positions, layer, &path);
        x = mlp_block(b, d, x, layer, &path);
    }
    x = norm(b, d, x, &format!("{prefix}norm"));
    if !layout.causal {
        let ty = b.activations(d.hidden);
        return b.output(x, "last_hidden_state", ty);
    }
    x = head(b, d, x, layout, table);
    if let Some(cap) = d.final_softcap {
        x = b.apply("", Native::Softcap { cap }, &[x]);
    }
    let ty = b.activations(d.vocab);
    b.output(x, "logits", ty);
}

fn head(b: &mut Builder, d: &Decoder, x: ValueId, layout: &Layout<'_>, table: WeightId) -> ValueId {
    let path = layout.head.unwrap_or("lm_head");
    let spec = LinearSpec::new(path, d.vocab, d.hidden).role(Role::Head);
    // Tied in the configuration, but with a tensor of its own: equal to the table or not, it counts.
    if d.tied && layout.head.is_none() {
        b.linear_of(x, &spec, WeightView::whole(table), None)
    } else {
        b.linear(x, &spec)
    }
}

fn norm(b: &mut Builder, d: &Decoder, x: ValueId, path: &str) -> ValueId {
    b.rms_norm(x, path, d.hidden, (d.eps, d.unit_offset, None))
}

fn attention(
    b: &mut Builder,
    d: &Decoder,
    x: ValueId,
    positions: ValueId,
    layer: u64,
    path: &str,
) -> ValueId {
    let (width, kv_width) = (d.heads * d.head_dim, d.kv_heads * d.head_dim);
    let slides = d.slides(layer);
    let rope = match &d.sliding_rope {
        Some(rope) if slides => rope,
        _ => &d.rope,
    };
    let h = norm(b, d, x, &format!("{path}.input_layernorm"));
    let at = format!("{path}.self_attn");
    let mut project = |name: &str, out| {
        let path = format!("{at}.{name}");
        b.linear(h, &LinearSpec::new(&path, out, d.hidden).bias(d.qkv_bias))
    };
    let (mut q, mut k) = (project("q_proj", width), project("k_proj", kv_width));
    let v = project("v_proj", kv_width);
    if d.qk_norm {
        let style = (d.eps, d.unit_offset, Some(d.head_dim));
        q = b.rms_norm(q, &format!("{at}.q_norm"), width, style);
        k = b.rms_norm(k, &format!("{at}.k_norm"), kv_width, style);
    }
    q = b.apply("", rope.op(d.heads, d.head_dim), &[q, positions]);
    k = b.apply("", rope.op(d.kv_heads, d.head_dim), &[k, positions]);
    let op = Native::Attention {
        heads: d.heads,
        kv_heads: d.kv_heads,
        head_dim: d.head_dim,
        scale: d.attn_scale,
        causal: true,
        window: d.window.filter(|_| slides),
        softcap: d.attn_softcap,
        cache: Some(layer),
    };
    let y = b.attention(&at, op, [q, k, v], None);
    let out = format!("{at}.o_proj");
    let mut y = b.linear(y, &LinearSpec::new(&out, d.hidden, width).bias(d.out_bias));
    if d.sandwich {
        y = norm(b, d, y, &format!("{path}.post_attention_layernorm"));
    }
    b.add(x, y)
}

fn mlp_block(b: &mut Builder, d: &Decoder, x: ValueId, layer: u64, path: &str) -> ValueId {
    let before = match d.sandwich {
        true => "pre_feedforward_layernorm",
        false => "post_attention_layernorm",
    };
    let h = norm(b, d, x, &format!("{path}.{before}"));
    let mut y = match &d.experts {
        Some(experts) if experts.in_layer(layer) => {
            experts.build(b, h, path, (d.hidden, d.activation))
        }
        _ => mlp(b, d, h, &format!("{path}.mlp")),
    };
    if d.sandwich {
        y = norm(b, d, y, &format!("{path}.post_feedforward_layernorm"));
    }
    b.add(x, y)
}

fn mlp(b: &mut Builder, d: &Decoder, x: ValueId, path: &str) -> ValueId {
    let names = ["gate_proj", "up_proj", "down_proj"].map(|n| format!("{path}.{n}"));
    let [gate, up, down] = names.each_ref().map(String::as_str);
    let gate = b.linear(
        x,
        &LinearSpec::new(gate, d.inner, d.hidden).bias(d.mlp_bias),
    );
    let up = b.linear(x, &LinearSpec::new(up, d.inner, d.hidden).bias(d.mlp_bias));
    let gate = b.activate(gate, d.activation);
    let y = b.apply("", Native::Mul, &[gate, up]);
    b.linear(
        y,
        &LinearSpec::new(down, d.hidden, d.inner).bias(d.mlp_bias),
    )
}
