//! Kernels that are not products: tables, norms, element by element, routing, rotations, sampling.

use super::Result;
use super::context::Context;
use super::{q8, unpack};

/// `ACTIVATION` of kernels.
pub(super) fn activate(kind: i64, x: f32) -> f32 {
    let wide = f64::from(x);
    match kind {
        1 => (wide / (1.0 + (-wide).exp())) as f32,
        2 => (0.5 * wide * (1.0 + erf(wide / std::f64::consts::SQRT_2))) as f32,
        3 => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (wide + 0.044715 * wide.powi(3));
            (0.5 * wide * (1.0 + inner.tanh())) as f32
        }
        4 => x.max(0.0),
        5 => wide.tanh() as f32,
        _ => x,
    }
}

/// The error function: its series near 0, a continued fraction beyond.
fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    if x.abs() < 2.5 {
        let (mut term, mut sum, mut n) = (x, x, 0.0);
        while term.abs() > 1e-17 * sum.abs() && n < 200.0 {
            n += 1.0;
            term *= -x * x / n;
            sum += term / (2.0 * n + 1.0);
        }
        return sum * 2.0 / std::f64::consts::PI.sqrt();
    }
    let z = x.abs();
    let fraction = (1..=60)
        .rev()
        .fold(0.0, |f, k| f64::from(k) / 2.0 / (z + f));
    let complement = (-z * z).exp() / std::f64::consts::PI.sqrt() / (z + fraction);
    x.signum() * (1.0 - complement)
}

/// A row behind a norm.
pub(super) fn norm_row(
    x: &[f32],
    gain: &[f32],
    beta: Option<&[f32]>,
    eps: f32,
    layer: bool,
) -> Vec<f32> {
    let count = x.len().max(1) as f64;
    let mean = match layer {
        true => x.iter().map(|&x| f64::from(x)).sum::<f64>() / count,
        false => 0.0,
    };
    let square = x
        .iter()
        .map(|&x| (f64::from(x) - mean).powi(2))
        .sum::<f64>()
        / count;
    let inverse = 1.0 / (square + f64::from(eps)).sqrt();
    let one = |(i, (x, gain)): (usize, (&f32, &f32))| {
        let value = (f64::from(*x) - mean) * inverse * f64::from(*gain);
        let beta = beta.and_then(|b| b.get(i)).copied().unwrap_or(0.0);
        (value + f64::from(beta)) as f32
    };
    x.iter().zip(gain).enumerate().map(one).collect()
}

pub(super) fn embed(c: &mut Context<'_, '_>) -> Result<()> {
    let ids = c.i32s("ids")?;
    let (rows, width, ldy) = (c.int("rows"), c.int("width"), c.int("ldy"));
    for token in 0..c.live_tokens(c.grid(0))? {
        let id = c.slice("ids", &ids, token, 1)?[0];
        let mut row = vec![f32::NAN; width];
        if let Some(id) = usize::try_from(id).ok().filter(|&id| id < rows)
            && let Some(tile) = unpack::rows(c, id / 16, width)?
        {
            let r = id % 16;
            for (k, value) in row.iter_mut().enumerate() {
                let group = k / tile.group * 16 + r;
                let zero = tile.zeros.get(group).copied().unwrap_or(0.0);
                let scale = tile.scales.get(group).copied().unwrap_or(1.0);
                *value = (tile.values[r * tile.padded + k] - zero) * scale;
            }
        }
        let scale = c.float("scale");
        row.iter_mut().for_each(|v| *v *= scale);
        if c.int("add") == 1 {
            let y = c.f32s("y")?;
            let before = c.slice("y", &y, token * ldy, width)?;
            row.iter_mut().zip(before).for_each(|(v, b)| *v += b);
        }
        c.store("y", token * ldy, &row)?;
    }
    Ok(())
}

pub(super) fn normalize(c: &mut Context<'_, '_>) -> Result<()> {
    let (width, ldx, ldy) = (c.int("width"), c.int("ldx"), c.int("ldy"));
    let (x, gain) = (c.f32s("x")?, c.f32s("gain")?);
    let gain = c.slice("gain", &gain, 0, width)?;
    let beta = if c.is_null("beta") {
        None
    } else {
        Some(c.f32s("beta")?)
    };
    let residual = match c.define("RESIDUAL") {
        1 => Some(c.f32s("residual")?),
        _ => None,
    };
    for token in 0..c.live_tokens(c.grid(0))? {
        let row = c.slice("x", &x, token * ldx, width)?;
        let mut y = norm_row(
            row,
            gain,
            beta.as_deref(),
            c.float("eps"),
            c.define("KIND") == 1,
        );
        if let Some(residual) = &residual {
            let residual = c.slice("residual", residual, token * ldy, width)?;
            y.iter_mut().zip(residual).for_each(|(y, r)| *y += r);
        }
        match c.define("OUT") {
            0 => c.store("y", token * ldy, &y)?,
            1 => store_half_row(c, token, y)?,
            _ => store_q8_row(c, token, &y)?,
        }
    }
    Ok(())
}

/// A row in 8 bits: codes in the order of kernels' lanes, scales, and sums of codes.
fn store_q8_row(c: &mut Context<'_, '_>, token: usize, row: &[f32]) -> Result<()> {
    let rounded = q8::round(row);
    let codes = rounded.in_lanes();
    let blocks = rounded.scales.len();
    c.write("yq", token * codes.len(), &codes)?;
    c.store("ys", token * blocks, &rounded.scales)?;
    c.store_ints("ysum", token * blocks, &rounded.sums)
}

/// f16 rows are zero from their width to their stride.
fn store_half_row(c: &mut Context<'_, '_>, token: usize, mut row: Vec<f32>) -> Result<()> {
    let ldy = c.int("ldy");
    row.resize(ldy, 0.0);
    c.store_halves("y16", token * ldy, &row)
}

pub(super) fn quantize(c: &mut Context<'_, '_>) -> Result<()> {
    let (width, ldx) = (c.int("width"), c.int("ldx"));
    let x = c.f32s("x")?;
    for token in 0..c.live_tokens(c.grid(0))? {
        let row = c.slice("x", &x, token * ldx, width)?.to_vec();
        match c.define("OUT") {
            1 => store_half_row(c, token, row)?,
            _ => store_q8_row(c, token, &row)?,
        }
    }
    Ok(())
}

pub(super) fn elementwise(c: &mut Context<'_, '_>) -> Result<()> {
    let width = c.int("width");
    let a = c.f32s("a")?;
    let b = if c.is_null("b") {
        None
    } else {
        Some(c.f32s("b")?)
    };
    let (op, kind, factor) = (c.define("OP"), c.define("ACTIVATION"), c.float("factor"));
    if op == 7 {
        let last = c.live_tokens(c.tokens())?.checked_sub(1);
        let last = last.ok_or_else(|| c.fault("a prompt without tokens has no last one"))?;
        let row = c.slice("a", &a, last * c.int("lda"), width)?.to_vec();
        return c.store("y", 0, &row);
    }
    for token in 0..c.live_tokens(c.grid(0))? {
        let a = c.slice("a", &a, token * c.int("lda"), width)?;
        let b = match &b {
            Some(b) => c.slice("b", b, token * c.int("ldb"), width)?,
            None => a,
        };
        let one = |(a, b): (&f32, &f32)| match op {
            0 => a + b,
            1 => a * b,
            2 => a * factor,
            3 => factor * (a / factor).tanh(),
            4 => activate(kind, *a),
            5 => activate(kind, *a) * b,
            _ => factor * a + b,
        };
        let row: Vec<f32> = a.iter().zip(b).map(one).collect();
        c.store("y", token * c.int("ldy"), &row)?;
    }
    Ok(())
}

pub(super) fn route(c: &mut Context<'_, '_>) -> Result<()> {
    let (experts, top_k, ldl) = (c.int("experts"), c.int("top_k"), c.int("ldl"));
    let logits = c.f32s("logits")?;
    for token in 0..c.grid(0) {
        let logits = c.slice("logits", &logits, token * ldl, experts)?;
        // Rows behind a prompt's last token hold anything; they get experts all the same.
        let key = |e: usize| {
            if logits[e].is_nan() {
                f32::NEG_INFINITY
            } else {
                logits[e]
            }
        };
        let top = (0..experts).map(key).fold(f32::NEG_INFINITY, f32::max);
        let odds: Vec<f64> = (0..experts)
            .map(|e| f64::from(key(e) - top).exp())
            .collect();
        let mut order: Vec<usize> = (0..experts).collect();
        order.sort_by(|&a, &b| key(b).total_cmp(&key(a)).then(a.cmp(&b)));
        order.truncate(top_k);
        let whole: f64 = match c.define("NORMALIZE") {
            1 => order.iter().map(|&e| odds[e]).sum(),
            _ => odds.iter().sum(),
        };
        let ids: Vec<i32> = order.iter().map(|&e| e as i32).collect();
        let weights: Vec<f32> = order.iter().map(|&e| (odds[e] / whole) as f32).collect();
        c.store_ints("ids", token * top_k, &ids)?;
        c.store("weights", token * top_k, &weights)?;
    }
    Ok(())
}

/// Tokens' choices by expert, those of one in their order.
pub(super) fn sort(c: &mut Context<'_, '_>) -> Result<()> {
    let (experts, top_k) = (c.int("experts"), c.int("top_k"));
    let tokens = match c.is_null("scalars") {
        true => c.int("tokens"),
        false => c.live_tokens(c.tokens())?,
    };
    let ids = c.i32s("ids")?;
    let ids = c.slice("ids", &ids, 0, tokens * top_k)?;
    let mut slots = Vec::with_capacity(ids.len());
    let mut starts = Vec::with_capacity(experts + 1);
    for expert in 0..experts {
        starts.push(slots.len() as i32);
        let own = ids.iter().enumerate();
        let own = own.filter(|(_, id)| usize::try_from(**id) == Ok(expert));
        slots.extend(own.map(|(slot, _)| slot as i32));
    }
    starts.push(slots.len() as i32);
    if slots.len() != ids.len() {
        return Err(c.fault(format!("a token has an expert that is none of {experts}")));
    }
    c.store_ints("slots", 0, &slots)?;
    c.store_ints("starts", 0, &starts)
}

/// The weighted sum of what a token's experts made.
pub(super) fn combine(c: &mut Context<'_, '_>) -> Result<()> {
    let (width, top_k, ldx) = (c.int("width"), c.int("top_k"), c.int("ldx"));
    let (x, weights) = (c.f32s("x")?, c.f32s("weights")?);
    let residual = match c.is_null("residual") {
        true => None,
        false => Some(c.f32s("residual")?),
    };
    for token in 0..c.live_tokens(c.grid(0))? {
        let mut sum = vec![0f64; width];
        for slot in token * top_k..(token + 1) * top_k {
            let weight = f64::from(c.slice("weights", &weights, slot, 1)?[0]);
            let row = c.slice("x", &x, slot * ldx, width)?;
            sum.iter_mut()
                .zip(row)
                .for_each(|(s, v)| *s += weight * f64::from(*v));
        }
        if let Some(residual) = &residual {
            let row = c.slice("residual", residual, token * c.int("ldr"), width)?;
            sum.iter_mut()
                .zip(row)
                .for_each(|(s, r)| *s += f64::from(*r));
        }
        let row: Vec<f32> = sum.into_iter().map(|v| v as f32).collect();
        c.store("y", token * c.int("ldy"), &row)?;
    }
    Ok(())
}

pub(super) fn hadamard(c: &mut Context<'_, '_>) -> Result<()> {
    let (width, block) = (c.int("width"), c.int("block").max(1));
    let (x, signs) = (c.f32s("x")?, c.u32s("signs")?);
    let inverse = c.define("INVERSE") == 1;
    let given = |name: &str, define: &str| match c.define(define) {
        1 => c.f32s(name).map(Some),
        _ => Ok(None),
    };
    let (bias, residual) = (given("bias", "BIAS")?, given("residual", "RESIDUAL")?);
    if !block.is_power_of_two() || !width.is_multiple_of(block) {
        return Err(c.fault(format!(
            "blocks of {block} do not cut {width} into powers of two"
        )));
    }
    c.slice("signs", &signs, 0, width.div_ceil(32))?;
    let sign = |k: usize| {
        if signs[k / 32] >> (k % 32) & 1 == 1 {
            -1.0
        } else {
            1.0
        }
    };
    for token in 0..c.live_tokens(c.grid(0))? {
        let row = c.slice("x", &x, token * c.int("ldx"), width)?;
        let mut y = vec![0f64; width];
        for (start, y) in (0..width).step_by(block).zip(y.chunks_mut(block)) {
            for (i, y) in y.iter_mut().enumerate() {
                let mut sum = 0f64;
                for j in 0..block {
                    let value = match inverse {
                        true => row[start + j],
                        false => row[start + j] * sign(start + j),
                    };
                    let odd = (i & j).count_ones() % 2 == 1;
                    sum += f64::from(if odd { -value } else { value });
                }
                *y = sum / (block as f64).sqrt();
            }
        }
        let mut y: Vec<f32> = y.into_iter().map(|v| v as f32).collect();
        if inverse {
            y.iter_mut().enumerate().for_each(|(k, v)| *v *= sign(k));
        }
        if let Some(bias) = &bias {
            let bias = c.slice("bias", bias, 0, width)?;
            y.iter_mut().zip(bias).for_each(|(v, b)| *v += b);
        }
        let kind = c.define("ACTIVATION");
        y.iter_mut().for_each(|v| *v = activate(kind, *v));
        if let Some(residual) = &residual {
            let residual = c.slice("residual", residual, token * c.int("ldr"), width)?;
            y.iter_mut().zip(residual).for_each(|(v, r)| *v += r);
        }
        match c.define("OUT") {
            1 => store_half_row(c, token, y)?,
            _ => c.store("y", token * c.int("ldy"), &y)?,
        }
    }
    Ok(())
}

pub(super) fn sample(c: &mut Context<'_, '_>) -> Result<()> {
    let (rows, ldl) = (c.int("rows"), c.int("ldl"));
    let (logits, params, top_k) = (c.f32s("logits")?, c.f32s("params")?, c.i32s("top_k")?);
    for token in 0..c.grid(0) {
        let logits = c.slice("logits", &logits, token * ldl, rows)?;
        let of = c.slice("params", &params, token * 3, 3)?;
        let (temperature, top_p, draw) = (of[0], of[1], f64::from(of[2]));
        let kept = usize::try_from(c.slice("top_k", &top_k, token, 1)?[0]).unwrap_or(0);
        let mut order: Vec<usize> = (0..rows).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        let chosen = match temperature > 0.0 {
            false => order.first().copied(),
            true => {
                if kept > 0 {
                    order.truncate(kept);
                }
                let top = order.first().map_or(0.0, |&i| logits[i]);
                let odds = order
                    .iter()
                    .map(|&i| f64::from((logits[i] - top) / temperature).exp());
                let odds: Vec<f64> = odds.collect();
                let all: f64 = odds.iter().sum();
                let mut nucleus = 0.0;
                let mut count = 0;
                for odd in &odds {
                    nucleus += odd;
                    count += 1;
                    if nucleus >= f64::from(top_p) * all {
                        break;
                    }
                }
                let mut left = draw * nucleus;
                let found = odds.iter().take(count).position(|odd| {
                    left -= odd;
                    left < 0.0
                });
                order.get(found.unwrap_or(count.saturating_sub(1))).copied()
            }
        };
        let chosen = chosen.and_then(|i| i32::try_from(i).ok()).unwrap_or(-1);
        c.store_ints("token", token, &[chosen])?;
    }
    Ok(())
}
