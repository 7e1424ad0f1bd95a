//! GPT-2 (`GPT2LMHeadModel`): learned positions, layer norms, q, k and v in one matrix, and matrices
//! stored as `[in, out]` (its `Conv1D`).

use super::builder::{Builder, LinearSpec};
use super::config::Fields;
use super::decoder::activation;
use super::{Stop, layers_present, unsupported};
use crate::ir::{Activation, Native, Role, ValueId, WeightView};

struct Gpt2 {
    hidden: u64,
    inner: u64,
    layers: u64,
    heads: u64,
    vocab: u64,
    positions: u64,
    eps: f64,
    activation: Activation,
    tied: bool,
    /// Scores are divided by the root of a head's width.
    scaled: bool,
    /// Scores are divided by the layer's number, from 1, too.
    by_layer: bool,
}

impl Gpt2 {
    fn read(f: &Fields<'_>) -> Result<Self, Stop> {
        let either = |name: &str, long: &str| match f.count(long)? {
            Some(count) => Ok::<_, Stop>(count),
            None => Ok(f.required(name)?),
        };
        let hidden = either("n_embd", "hidden_size")?;
        let heads = either("n_head", "num_attention_heads")?;
        if hidden % heads != 0 {
            let problem = format!("is {heads}, which doesn't divide n_embd {hidden}");
            return Err(f.fault("n_head", problem).into());
        }
        if f.flag("add_cross_attention", false)? {
            return unsupported("add_cross_attention");
        }
        Ok(Self {
            hidden,
            inner: f.count("n_inner")?.unwrap_or(4 * hidden),
            layers: either("n_layer", "num_hidden_layers")?,
            heads,
            vocab: f.required("vocab_size")?,
            positions: either("n_positions", "max_position_embeddings")?,
            eps: f.number("layer_norm_epsilon")?.unwrap_or(1e-5),
            activation: activation(f, "activation_function", "gelu_new")?,
            tied: f.flag("tie_word_embeddings", true)?,
            scaled: f.flag("scale_attn_weights", true)?,
            by_layer: f.flag("scale_attn_by_inverse_layer_idx", false)?,
        })
    }
}

pub(super) fn build(b: &mut Builder, f: &Fields<'_>, architecture: &str) -> Result<(), Stop> {
    let g = Gpt2::read(f)?;
    let bare = b.tensors.has("wte.weight", false);
    let prefix = if bare { "" } else { "transformer." };
    layers_present(b, &format!("{prefix}h."), g.layers, f)?;
    let ids = b.ids("input_ids");
    let (x, table) = b.embedding(ids, &format!("{prefix}wte"), g.vocab, g.hidden);
    let positions = b.apply("", Native::Positions, &[ids]);
    let (p, _) = b.embedding(positions, &format!("{prefix}wpe"), g.positions, g.hidden);
    let mut x = b.add(x, p);
    for layer in 0..g.layers {
        let path = format!("{prefix}h.{layer}");
        x = attention(b, &g, x, layer, &path);
        x = mlp(b, &g, x, &path);
    }
    x = b.layer_norm(x, &format!("{prefix}ln_f"), g.hidden, g.eps);
    let own_head = b.tensors.has("lm_head.weight", !g.tied);
    if architecture.ends_with("GPT2Model") && !own_head {
        let ty = b.activations(g.hidden);
        b.output(x, "last_hidden_state", ty);
        return Ok(());
    }
    let spec = LinearSpec::new("lm_head", g.vocab, g.hidden).role(Role::Head);
    x = match g.tied && !own_head {
        true => b.linear_of(x, &spec, WeightView::whole(table), None),
        false => b.linear(x, &spec),
    };
    let ty = b.activations(g.vocab);
    b.output(x, "logits", ty);
    Ok(())
}

fn attention(b: &mut Builder, g: &Gpt2, x: ValueId, layer: u64, path: &str) -> ValueId {
    let (hidden, head_dim) = (g.hidden, g.hidden / g.heads);
    let h = b.layer_norm(x, &format!("{path}.ln_1"), hidden, g.eps);
    let at = format!("{path}.attn");
    let fused = format!("{at}.c_attn");
    let fused = LinearSpec::new(&fused, 3 * hidden, hidden)
        .bias(true)
        .transposed();
    let qkv = b.linear(h, &fused);
    let qkv = [0, 1, 2].map(|part| b.slice(qkv, part * hidden, hidden));
    let scale = if g.scaled {
        (head_dim as f64).powf(-0.5)
    } else {
        1.0
    };
    let op = Native::Attention {
        heads: g.heads,
        kv_heads: g.heads,
        head_dim,
        scale: if g.by_layer {
            scale / (layer + 1) as f64
        } else {
            scale
        },
        causal: true,
        window: None,
        softcap: None,
        cache: Some(layer),
    };
    let y = b.attention(&at, op, qkv, None);
    let out = format!("{at}.c_proj");
    let y = b.linear(
        y,
        &LinearSpec::new(&out, hidden, hidden)
            .bias(true)
            .transposed(),
    );
    b.add(x, y)
}

fn mlp(b: &mut Builder, g: &Gpt2, x: ValueId, path: &str) -> ValueId {
    let h = b.layer_norm(x, &format!("{path}.ln_2"), g.hidden, g.eps);
    let (up, down) = (format!("{path}.mlp.c_fc"), format!("{path}.mlp.c_proj"));
    let up = LinearSpec::new(&up, g.inner, g.hidden)
        .bias(true)
        .transposed();
    let y = b.linear(h, &up);
    let y = b.activate(y, g.activation);
    let down = LinearSpec::new(&down, g.hidden, g.inner)
        .bias(true)
        .transposed();
    let y = b.linear(y, &down);
    b.add(x, y)
}
