//! The fixtures' worth: with one choice of a family swapped for another's, the outputs must move.

use super::fixture::{Fixture, engine, error, exec, f32s};
use super::{FAMILIES, TOLERANCE};
use hlrc::ir::{Activation, Module, Native, Op, OpKind, Operand, RopeScaling, Term};

/// Least that a swapped choice moves the outputs.
const MOVED: f64 = 1e-2;
/// The same for two forms of one function: still outside of what agrees.
const SHIFTED: f64 = 3.0 * TOLERANCE;

/// Changes a module; `false` where there is nothing of the kind to change.
type Change = fn(&mut Module) -> bool;

const SWAPS: [(&str, f64, Change); 34] = [
    ("rope: neighbours for halves", MOVED, interleaved),
    ("rope: another base", MOVED, other_base),
    (
        "rope: bases of local and global layers",
        MOVED,
        bases_swapped,
    ),
    ("rope: a part of each head", MOVED, partial),
    ("rope: not scaled", MOVED, unscaled),
    ("rope: scaled linearly", MOVED, scaled_linearly),
    ("rope: no attention factor", MOVED, no_attention_factor),
    ("rope: none", MOVED, unrotated),
    ("norm: offset of the gain", MOVED, offset),
    ("norm: mean removed", MOVED, mean_removed),
    ("norm: mean kept", MOVED, mean_kept),
    ("norm: no bias", MOVED, unbiased_norm),
    ("norm: epsilon", MOVED, epsilon),
    ("norm: none of q and k", MOVED, no_head_norms),
    ("norm: none behind attention", MOVED, none_behind_attention),
    ("norm: none behind the MLP", MOVED, none_behind_mlp),
    ("attention: causal or not", MOVED, causal),
    ("attention: no window", MOVED, no_window),
    ("attention: a window", MOVED, a_window),
    ("attention: one more in the window", MOVED, wider),
    ("attention: windows moved by a layer", MOVED, windows_moved),
    ("attention: scores not capped", MOVED, uncapped),
    ("attention: scores capped", MOVED, capped),
    ("attention: scale", MOVED, sharper),
    ("attention: padding is seen", MOVED, unmasked),
    ("activation: SiLU and GELU", MOVED, silu_for_gelu),
    ("activation: the forms of GELU", SHIFTED, other_gelu),
    ("embeddings: not scaled", MOVED, unscaled_embeddings),
    ("logits: not capped", MOVED, uncapped_logits),
    ("experts: normalised or not", MOVED, normalised),
    ("experts: one more", MOVED, one_more_expert),
    ("linear: no bias", MOVED, unbiased),
    ("linear: square matrices transposed", MOVED, transposed),
    (
        "linear: parts of a fused matrix in reverse",
        MOVED,
        reversed,
    ),
];

/// Changes every op that `change` applies to.
fn each(module: &mut Module, mut change: impl FnMut(&mut Op) -> bool) -> bool {
    let ops = module.graphs.iter_mut().flat_map(|g| &mut g.ops);
    // To the last, not to the first that is changed.
    ops.filter_map(|op| change(op).then_some(())).count() > 0
}

fn natives(module: &mut Module, mut change: impl FnMut(&mut Native) -> bool) -> bool {
    each(module, |op| match &mut op.kind {
        OpKind::Native(native) => change(native),
        _ => false,
    })
}

/// The op passes its first input on.
fn bypass(op: &mut Op) -> bool {
    op.kind = OpKind::Native(Native::Scale { factor: 1.0 });
    op.inputs.truncate(1);
    true
}

fn bypass_where(module: &mut Module, chosen: impl Fn(&Op) -> bool) -> bool {
    each(module, |op| chosen(op) && bypass(op))
}

fn interleaved(module: &mut Module) -> bool {
    natives(module, |native| match native {
        Native::Rope { interleaved, .. } => {
            *interleaved = !*interleaved;
            true
        }
        _ => false,
    })
}

fn bases(module: &mut Module, mut change: impl FnMut(&mut f64) -> bool) -> bool {
    natives(module, |native| match native {
        Native::Rope { theta, .. } => change(theta),
        _ => false,
    })
}

fn other_base(module: &mut Module) -> bool {
    bases(module, |theta| {
        *theta = 50.0;
        true
    })
}

fn bases_swapped(module: &mut Module) -> bool {
    let mut found = Vec::new();
    bases(module, |theta| {
        if !found.contains(theta) {
            found.push(*theta);
        }
        false
    });
    let &[one, other] = found.as_slice() else {
        return false;
    };
    bases(module, |theta| {
        *theta = if *theta == one { other } else { one };
        true
    })
}

fn partial(module: &mut Module) -> bool {
    natives(module, |native| match native {
        Native::Rope { rotary_dim, .. } => {
            *rotary_dim = *rotary_dim / 4 * 2;
            true
        }
        _ => false,
    })
}

fn scalings(module: &mut Module, mut change: impl FnMut(&mut Option<RopeScaling>) -> bool) -> bool {
    natives(module, |native| match native {
        Native::Rope { scaling, .. } => change(scaling),
        _ => false,
    })
}

fn unscaled(module: &mut Module) -> bool {
    scalings(module, |scaling| scaling.take().is_some())
}

fn scaled_linearly(module: &mut Module) -> bool {
    scalings(module, |scaling| match scaling {
        None | Some(RopeScaling::Linear { .. }) => false,
        Some(other) => {
            *other = RopeScaling::Linear { factor: 4.0 };
            true
        }
    })
}

fn no_attention_factor(module: &mut Module) -> bool {
    scalings(module, |scaling| match scaling {
        Some(RopeScaling::Yarn {
            attention_factor, ..
        }) => {
            *attention_factor = 1.0;
            true
        }
        _ => false,
    })
}

fn unrotated(module: &mut Module) -> bool {
    bypass_where(module, |op| {
        matches!(op.kind, OpKind::Native(Native::Rope { .. }))
    })
}

fn offset(module: &mut Module) -> bool {
    natives(module, |native| match native {
        Native::RmsNorm { unit_offset, .. } => {
            *unit_offset = !*unit_offset;
            true
        }
        _ => false,
    })
}

fn mean_removed(module: &mut Module) -> bool {
    natives(module, |native| match *native {
        Native::RmsNorm {
            eps,
            unit_offset: false,
            slice: None,
        } => {
            *native = Native::LayerNorm { eps };
            true
        }
        _ => false,
    })
}

/// A layer norm without its mean; the bias goes with it.
fn mean_kept(module: &mut Module) -> bool {
    each(module, |op| match op.kind {
        OpKind::Native(Native::LayerNorm { eps }) => {
            let (unit_offset, slice) = (false, None);
            op.kind = OpKind::Native(Native::RmsNorm {
                eps,
                unit_offset,
                slice,
            });
            op.inputs.truncate(2);
            true
        }
        _ => false,
    })
}

fn unbiased_norm(module: &mut Module) -> bool {
    each(module, |op| match op.kind {
        OpKind::Native(Native::LayerNorm { .. }) => {
            let biased = op.inputs.len() == 3;
            op.inputs.truncate(2);
            biased
        }
        _ => false,
    })
}

fn epsilon(module: &mut Module) -> bool {
    natives(module, |native| match native {
        Native::RmsNorm { eps, .. } | Native::LayerNorm { eps } if *eps > 1e-3 => {
            *eps = 1e-6;
            true
        }
        _ => false,
    })
}

fn is_head_norm(op: &Op) -> bool {
    matches!(
        op.kind,
        OpKind::Native(Native::RmsNorm { slice: Some(_), .. })
    )
}

fn no_head_norms(module: &mut Module) -> bool {
    bypass_where(module, is_head_norm)
}

fn none_behind_attention(module: &mut Module) -> bool {
    let sandwich = module.graphs.iter().flat_map(|g| &g.ops);
    let sandwich = sandwich
        .map(|op| op.name.as_str())
        .any(|name| name.ends_with("pre_feedforward_layernorm"));
    sandwich && bypass_where(module, |op| op.name.ends_with("post_attention_layernorm"))
}

fn none_behind_mlp(module: &mut Module) -> bool {
    bypass_where(module, |op| op.name.ends_with("post_feedforward_layernorm"))
}

fn causal(module: &mut Module) -> bool {
    natives(module, |native| match native {
        Native::Attention { causal, cache, .. } => {
            *causal = !*causal;
            // Who sees what comes later can't decode.
            *cache = None;
            true
        }
        _ => false,
    })
}

fn windows(module: &mut Module, mut change: impl FnMut(&mut Option<u64>) -> bool) -> bool {
    natives(module, |native| match native {
        Native::Attention {
            window,
            causal: true,
            ..
        } => change(window),
        _ => false,
    })
}

fn no_window(module: &mut Module) -> bool {
    windows(module, |window| window.take().is_some())
}

fn a_window(module: &mut Module) -> bool {
    windows(module, |window| window.replace(5).is_none())
}

fn wider(module: &mut Module) -> bool {
    windows(module, |window| match window {
        Some(window) => {
            *window += 1;
            true
        }
        None => false,
    })
}

fn windows_moved(module: &mut Module) -> bool {
    let mut found = Vec::new();
    windows(module, |window| {
        found.push(*window);
        false
    });
    if found.windows(2).all(|pair| pair[0] == pair[1]) {
        return false;
    }
    found.rotate_left(1);
    let mut moved = found.into_iter();
    windows(module, |window| {
        *window = moved.next().expect("as many as before");
        true
    })
}

fn caps(module: &mut Module, change: fn(&mut Option<f64>) -> bool) -> bool {
    natives(module, |native| match native {
        Native::Attention { softcap, .. } => change(softcap),
        _ => false,
    })
}

fn uncapped(module: &mut Module) -> bool {
    caps(module, |cap| cap.take().is_some())
}

fn capped(module: &mut Module) -> bool {
    caps(module, |cap| cap.replace(0.5).is_none())
}

fn sharper(module: &mut Module) -> bool {
    natives(module, |native| match native {
        Native::Attention { scale, .. } => {
            *scale *= 1.3;
            true
        }
        _ => false,
    })
}

fn unmasked(module: &mut Module) -> bool {
    each(module, |op| match (&op.kind, op.inputs.get_mut(3)) {
        (OpKind::Native(Native::Attention { .. }), Some(mask @ Operand::Value(_))) => {
            *mask = Operand::None;
            true
        }
        _ => false,
    })
}

fn activations(module: &mut Module, other: fn(Activation) -> Option<Activation>) -> bool {
    natives(module, |native| match native {
        Native::Activate { function } => match other(*function) {
            Some(other) => {
                *function = other;
                true
            }
            None => false,
        },
        _ => false,
    })
}

fn silu_for_gelu(module: &mut Module) -> bool {
    activations(module, |function| match function {
        Activation::Silu => Some(Activation::Gelu),
        Activation::Gelu | Activation::GeluTanh => Some(Activation::Silu),
        _ => None,
    })
}

fn other_gelu(module: &mut Module) -> bool {
    activations(module, |function| match function {
        Activation::Gelu => Some(Activation::GeluTanh),
        Activation::GeluTanh => Some(Activation::Gelu),
        _ => None,
    })
}

fn unscaled_embeddings(module: &mut Module) -> bool {
    bypass_where(module, |op| {
        matches!(op.kind, OpKind::Native(Native::Scale { .. }))
    })
}

fn uncapped_logits(module: &mut Module) -> bool {
    bypass_where(module, |op| {
        matches!(op.kind, OpKind::Native(Native::Softcap { .. }))
    })
}

fn mixtures(module: &mut Module, change: fn(&mut hlrc::ir::Moe)) -> bool {
    each(module, |op| match &mut op.kind {
        OpKind::Moe(moe) => {
            change(moe);
            true
        }
        _ => false,
    })
}

fn normalised(module: &mut Module) -> bool {
    mixtures(module, |moe| moe.normalize = !moe.normalize)
}

fn one_more_expert(module: &mut Module) -> bool {
    mixtures(module, |moe| moe.top_k += 1)
}

fn unbiased(module: &mut Module) -> bool {
    each(module, |op| match &mut op.kind {
        OpKind::Linear(linear) => linear.bias.take().is_some(),
        _ => false,
    })
}

/// Square `[in, out]` matrices read as `[out, in]`, and the other way round.
fn transposed(module: &mut Module) -> bool {
    each(module, |op| match &mut op.kind {
        OpKind::Linear(linear) if linear.matrix.out_features == linear.matrix.in_features => {
            match linear.matrix.terms.first_mut() {
                Some(Term::Dense(view)) => {
                    view.transposed = !view.transposed;
                    true
                }
                _ => false,
            }
        }
        _ => false,
    })
}

/// The slices of a fused product, last first.
fn reversed(module: &mut Module) -> bool {
    let mut last = 0;
    natives(module, |native| {
        if let Native::Slice { start, .. } = native {
            last = last.max(*start);
        }
        false
    });
    natives(module, |native| match native {
        Native::Slice { start, .. } => {
            *start = last - *start;
            true
        }
        _ => false,
    })
}

/// The furthest that an output is from what it has to be.
fn moved(fixture: &Fixture, module: &Module) -> f64 {
    let outputs = exec(&engine(module, &fixture.files, 1), &fixture.inputs());
    let known = outputs
        .iter()
        .filter_map(|(name, tensor)| Some((tensor, fixture.expected.get(name)?)));
    let off = known.map(|(have, want)| error(f32s(have), f32s(want)));
    off.fold(0.0, f64::max)
}

#[test]
fn a_swapped_choice_moves_the_outputs() {
    let fixtures: Vec<Fixture> = FAMILIES.iter().map(|name| Fixture::open(name)).collect();
    for (what, least, change) in SWAPS {
        let mut tried = 0;
        for fixture in &fixtures {
            let (name, mut module) = (&fixture.name, fixture.module.clone());
            if !change(&mut module) {
                continue;
            }
            tried += 1;
            let moved = moved(fixture, &module);
            eprintln!("{what}: {name} moves by {moved:.1e}");
            assert!(moved > least, "{what}: {name} moves by {moved:e} only");
        }
        assert!(tried > 0, "{what}: no fixture has it");
    }
}
