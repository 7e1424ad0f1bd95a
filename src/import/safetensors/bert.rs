//! BERT encoders (`BertModel` and its heads): embeddings summed, norms behind each block, biases
//! everywhere, attention in both directions under a key mask.

use super::builder::{Builder, LinearSpec};
use super::config::Fields;
use super::decoder::activation;
use super::{Stop, layers_present, unsupported};
use crate::ir::{Activation, Dim, Native, Role, Type, ValueId, WeightId, WeightView};
use crate::weights::DType;

struct Bert {
    hidden: u64,
    inner: u64,
    layers: u64,
    heads: u64,
    vocab: u64,
    positions: u64,
    types: u64,
    eps: f64,
    activation: Activation,
}

impl Bert {
    fn read(f: &Fields<'_>) -> Result<Self, Stop> {
        let (hidden, heads) = (
            f.required("hidden_size")?,
            f.required("num_attention_heads")?,
        );
        if hidden % heads != 0 {
            let problem = format!("is {heads}, which doesn't divide hidden_size {hidden}");
            return Err(f.fault("num_attention_heads", problem).into());
        }
        for name in ["is_decoder", "add_cross_attention"] {
            if f.flag(name, false)? {
                return unsupported(name);
            }
        }
        match f.text("position_embedding_type")? {
            None | Some("absolute") => {}
            Some(other) => return unsupported(format!("position_embedding_type `{other}`")),
        }
        Ok(Self {
            hidden,
            inner: f.required("intermediate_size")?,
            layers: f.required("num_hidden_layers")?,
            heads,
            vocab: f.required("vocab_size")?,
            positions: f.count("max_position_embeddings")?.unwrap_or(512),
            types: f.count("type_vocab_size")?.unwrap_or(2),
            eps: f.number("layer_norm_eps")?.unwrap_or(1e-12),
            activation: activation(f, "hidden_act", "gelu")?,
        })
    }
}

pub(super) fn build(b: &mut Builder, f: &Fields<'_>, architecture: &str) -> Result<(), Stop> {
    let c = Bert::read(f)?;
    let headed = b
        .tensors
        .has("bert.embeddings.word_embeddings.weight", false);
    let prefix = if headed { "bert." } else { "" };
    layers_present(b, &format!("{prefix}encoder.layer."), c.layers, f)?;
    let ids = ["input_ids", "attention_mask", "token_type_ids"].map(|name| b.ids(name));
    let (mut x, table) = embeddings(b, &c, ids, &format!("{prefix}embeddings"));
    for layer in 0..c.layers {
        x = block(b, &c, x, ids[1], &format!("{prefix}encoder.layer.{layer}"));
    }
    let ty = b.activations(c.hidden);
    b.output(x, "last_hidden_state", ty);
    let pooled = pooler(b, &c, x, &format!("{prefix}pooler.dense"));
    heads(b, &c, architecture, (x, pooled), table);
    Ok(())
}

fn embeddings(
    b: &mut Builder,
    c: &Bert,
    [ids, _, types]: [ValueId; 3],
    path: &str,
) -> (ValueId, WeightId) {
    let (words, table) = b.embedding(ids, &format!("{path}.word_embeddings"), c.vocab, c.hidden);
    let name = format!("{path}.token_type_embeddings");
    let (types, _) = b.embedding(types, &name, c.types, c.hidden);
    let positions = b.apply("", Native::Positions, &[ids]);
    let name = format!("{path}.position_embeddings");
    let (positions, _) = b.embedding(positions, &name, c.positions, c.hidden);
    let x = b.add(words, types);
    let x = b.add(x, positions);
    (
        b.layer_norm(x, &format!("{path}.LayerNorm"), c.hidden, c.eps),
        table,
    )
}

fn block(b: &mut Builder, c: &Bert, x: ValueId, mask: ValueId, path: &str) -> ValueId {
    let at = format!("{path}.attention");
    let qkv = ["query", "key", "value"].map(|name| {
        let path = format!("{at}.self.{name}");
        b.linear(x, &LinearSpec::new(&path, c.hidden, c.hidden).bias(true))
    });
    let head_dim = c.hidden / c.heads;
    let op = Native::Attention {
        heads: c.heads,
        kv_heads: c.heads,
        head_dim,
        scale: (head_dim as f64).powf(-0.5),
        causal: false,
        window: None,
        softcap: None,
        cache: None,
    };
    let y = b.attention(&format!("{at}.self"), op, qkv, Some(mask));
    let x = residual(b, c, (x, y), c.hidden, &format!("{at}.output"));
    let up = format!("{path}.intermediate.dense");
    let y = b.linear(x, &LinearSpec::new(&up, c.inner, c.hidden).bias(true));
    let y = b.activate(y, c.activation);
    residual(b, c, (x, y), c.inner, &format!("{path}.output"))
}

/// `LayerNorm(dense(y) + x)`
fn residual(
    b: &mut Builder,
    c: &Bert,
    (x, y): (ValueId, ValueId),
    width: u64,
    path: &str,
) -> ValueId {
    let dense = format!("{path}.dense");
    let y = b.linear(y, &LinearSpec::new(&dense, c.hidden, width).bias(true));
    let sum = b.add(y, x);
    b.layer_norm(sum, &format!("{path}.LayerNorm"), c.hidden, c.eps)
}

/// The first token's vector through a linear and tanh, where the checkpoint has a pooler.
fn pooler(b: &mut Builder, c: &Bert, x: ValueId, path: &str) -> Option<ValueId> {
    if !b.tensors.has(&format!("{path}.weight"), true) {
        return None;
    }
    let first = b.apply("", Native::FirstToken, &[x]);
    let y = b.linear(first, &LinearSpec::new(path, c.hidden, c.hidden).bias(true));
    b.retype(y, per_sequence(c.hidden));
    let y = b.activate(y, Activation::Tanh);
    b.output(y, "pooler_output", per_sequence(c.hidden));
    Some(y)
}

/// The head of the architecture, where its tensors are there.
fn heads(
    b: &mut Builder,
    c: &Bert,
    architecture: &str,
    (x, pooled): (ValueId, Option<ValueId>),
    table: WeightId,
) {
    if architecture.ends_with("ForMaskedLM") || architecture.ends_with("ForPreTraining") {
        if b.tensors
            .has("cls.predictions.transform.dense.weight", true)
        {
            masked_head(b, c, x, table);
        }
        return;
    }
    let (path, input) = match (architecture.rsplit("For").next(), pooled) {
        (Some("SequenceClassification"), Some(pooled)) => ("classifier", pooled),
        (Some("TokenClassification"), _) => ("classifier", x),
        (Some("QuestionAnswering"), _) => ("qa_outputs", x),
        _ => return,
    };
    let Some(&[classes, _]) = b.tensors.dims(&format!("{path}.weight")) else {
        return;
    };
    let spec = LinearSpec::new(path, classes, c.hidden)
        .bias(true)
        .role(Role::Head);
    let y = b.linear(input, &spec);
    let ty = if Some(input) == pooled {
        per_sequence(classes)
    } else {
        b.activations(classes)
    };
    b.output(y, "logits", ty);
}

fn masked_head(b: &mut Builder, c: &Bert, x: ValueId, table: WeightId) {
    let path = "cls.predictions";
    let dense = format!("{path}.transform.dense");
    let y = b.linear(x, &LinearSpec::new(&dense, c.hidden, c.hidden).bias(true));
    let y = b.activate(y, c.activation);
    let y = b.layer_norm(y, &format!("{path}.transform.LayerNorm"), c.hidden, c.eps);
    let decoder = format!("{path}.decoder");
    let spec = LinearSpec::new(&decoder, c.vocab, c.hidden).role(Role::Head);
    let own = format!("{decoder}.weight");
    let weight = match b.tensors.has(&own, false) {
        true => b.tensors.weight(&own, &[c.vocab, c.hidden]),
        false => table,
    };
    let bias = [format!("{path}.bias"), format!("{decoder}.bias")];
    let bias = b
        .tensors
        .first_of(&bias.each_ref().map(String::as_str))
        .to_string();
    let bias = b.tensors.weight(&bias, &[c.vocab]);
    let y = b.linear_of(y, &spec, WeightView::whole(weight), Some(bias));
    let ty = b.activations(c.vocab);
    b.output(y, "logits", ty);
}

/// `f32[B,width]`
fn per_sequence(width: u64) -> Type {
    let width = Dim::Known(i64::try_from(width).unwrap_or(i64::MAX));
    Type::tensor(DType::F32, vec![Dim::symbol("B"), width])
}
