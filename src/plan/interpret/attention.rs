//! Attention: rotation, the cache, softmax over what is seen.

use std::ops::Range;

use half::f16;

use super::Result;
use super::context::Context;
use super::small::norm_row;

/// Shapes and places that all attention kernels share.
struct Shape {
    head_dim: usize,
    heads: usize,
    kv_heads: usize,
    capacity: usize,
    page: usize,
    max_pages: usize,
    quantized: bool,
    paged: bool,
}

impl Shape {
    fn read(c: &Context<'_, '_>) -> Result<Self> {
        let shape = Self {
            head_dim: usize::try_from(c.define("HEAD_DIM")).unwrap_or(0),
            heads: c.int("heads"),
            kv_heads: c.int("kv_heads"),
            capacity: c.int("capacity"),
            page: c.int("page"),
            max_pages: c.int("max_pages"),
            quantized: c.define("KV") == 1,
            paged: c.define("PAGED") == 1,
        };
        let whole = shape.kv_heads > 0 && shape.heads.is_multiple_of(shape.kv_heads);
        if !whole || shape.capacity == 0 || (shape.paged && shape.page == 0) {
            return Err(c.fault("heads, capacity or pages are 0 or do not divide"));
        }
        Ok(shape)
    }

    /// Place of a head's vector at a position of a sequence, counted in vectors.
    fn vector(
        &self,
        c: &Context<'_, '_>,
        sequence: usize,
        position: usize,
        head: usize,
    ) -> Result<usize> {
        let slot = position % self.capacity;
        let row = match self.paged {
            false => sequence * self.capacity + slot,
            true => {
                let pages = c.i32s("pages")?;
                let at = sequence * self.max_pages + slot / self.page;
                let page = c.slice("pages", &pages, at, 1)?[0];
                let page =
                    usize::try_from(page).map_err(|_| c.fault(format!("page {page} is none")))?;
                page * self.page + slot % self.page
            }
        };
        Ok(row * self.kv_heads + head)
    }

    fn store(
        &self,
        c: &mut Context<'_, '_>,
        name: &str,
        vector: usize,
        values: &[f32],
    ) -> Result<()> {
        c.keep(&format!("{name}_cache"), vector, values);
        if !self.quantized {
            return c.store_halves(&format!("{name}_cache"), vector * self.head_dim, values);
        }
        let (mut codes, mut scales) = (Vec::new(), Vec::new());
        for block in values.chunks(32) {
            let largest = block.iter().fold(0f32, |m, v| m.max(v.abs()));
            let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
            codes.extend(
                block
                    .iter()
                    .map(|v| (v * inverse).round_ties_even() as i8 as u8),
            );
            scales.push(largest / 127.0);
        }
        c.write(&format!("{name}_cache"), vector * self.head_dim, &codes)?;
        c.store_halves(&format!("{name}_scales"), vector * scales.len(), &scales)
    }

    fn load(&self, c: &Context<'_, '_>, name: &str, vector: usize) -> Result<Vec<f32>> {
        if let Some(kept) = c.kept(&format!("{name}_cache"), vector) {
            return Ok(kept);
        }
        let bytes = c.bytes(&format!("{name}_cache"))?;
        if !self.quantized {
            let some = c.slice(name, bytes, vector * self.head_dim * 2, self.head_dim * 2)?;
            let pairs = some.as_chunks::<2>().0.iter();
            return Ok(pairs.map(|b| f16::from_le_bytes(*b).to_f32()).collect());
        }
        let codes = c.slice(name, bytes, vector * self.head_dim, self.head_dim)?;
        let groups = self.head_dim.div_ceil(32);
        let scales = c.bytes(&format!("{name}_scales"))?;
        let scales = c.slice(name, scales, vector * groups * 2, groups * 2)?;
        let scale = |k: usize| {
            f16::from_le_bytes([scales[2 * (k / 32)], scales[2 * (k / 32) + 1]]).to_f32()
        };
        Ok(codes
            .iter()
            .enumerate()
            .map(|(k, &q)| f32::from(q as i8) * scale(k))
            .collect())
    }
}

/// A head's norm and rotation.
fn turned(c: &Context<'_, '_>, gain: &str, x: &[f32], position: usize) -> Result<Vec<f32>> {
    let mut x = x.to_vec();
    if c.define("QK_NORM") == 1 {
        let gain = c.f32s(gain)?;
        x = norm_row(
            &x,
            c.slice("gain", &gain, 0, x.len())?,
            None,
            c.float("norm_eps"),
            false,
        );
    }
    let rope = c.define("ROPE");
    if rope == 0 {
        return Ok(x);
    }
    let pairs = c.int("rotary_dim") / 2;
    let frequencies = c.f32s("inv_freq")?;
    let frequencies = c.slice("inv_freq", &frequencies, 0, pairs)?;
    c.slice("a head", &x, 0, 2 * pairs)?;
    let factor = c.float("rope_factor");
    for (i, frequency) in frequencies.iter().enumerate() {
        let angle = f64::from(position as f32 * frequency);
        let (sin, cos) = (angle.sin() as f32 * factor, angle.cos() as f32 * factor);
        let (a, b) = if rope == 2 {
            (2 * i, 2 * i + 1)
        } else {
            (i, i + pairs)
        };
        (x[a], x[b]) = (x[a] * cos - x[b] * sin, x[b] * cos + x[a] * sin);
    }
    Ok(x)
}

/// Appends a token's keys and values; returns its queries, turned.
fn append_token(
    c: &mut Context<'_, '_>,
    shape: &Shape,
    row: &[f32],
    sequence: usize,
    position: usize,
) -> Result<Vec<f32>> {
    let d = shape.head_dim;
    let (q0, k0, v0) = (c.int("q_offset"), c.int("k_offset"), c.int("v_offset"));
    for head in 0..shape.kv_heads {
        let vector = shape.vector(c, sequence, position, head)?;
        let k = turned(
            c,
            "k_gain",
            c.slice("qkv", row, k0 + head * d, d)?,
            position,
        )?;
        let v = c.slice("qkv", row, v0 + head * d, d)?.to_vec();
        shape.store(c, "k", vector, &k)?;
        shape.store(c, "v", vector, &v)?;
    }
    let mut queries = Vec::with_capacity(shape.heads * d);
    for head in 0..shape.heads {
        queries.extend(turned(
            c,
            "q_gain",
            c.slice("qkv", row, q0 + head * d, d)?,
            position,
        )?);
    }
    Ok(queries)
}

/// What a position sees.
fn seen(c: &Context<'_, '_>, position: usize) -> Range<usize> {
    let first = match c.int("window") {
        0 => 0,
        window => (position + 1).saturating_sub(window),
    };
    first..position + 1
}

/// A token's attention.
fn attend(
    c: &Context<'_, '_>,
    shape: &Shape,
    queries: &[f32],
    sequence: usize,
    position: usize,
) -> Result<Vec<f32>> {
    let (d, group) = (shape.head_dim, shape.heads / shape.kv_heads);
    let (scale, cap) = (c.float("scale"), c.float("softcap"));
    let mut out = Vec::with_capacity(queries.len());
    for kv in 0..shape.kv_heads {
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for at in seen(c, position) {
            let vector = shape.vector(c, sequence, at, kv)?;
            keys.push(shape.load(c, "k", vector)?);
            values.push(shape.load(c, "v", vector)?);
        }
        for head in kv * group..(kv + 1) * group {
            let q = c.slice("q", queries, head * d, d)?;
            let score = |k: &Vec<f32>| {
                let dot: f64 = q
                    .iter()
                    .zip(k)
                    .map(|(a, b)| f64::from(*a) * f64::from(*b))
                    .sum();
                let score = dot * f64::from(scale);
                match c.define("SOFTCAP") {
                    1 => f64::from(cap) * (score / f64::from(cap)).tanh(),
                    _ => score,
                }
            };
            let scores: Vec<f64> = keys.iter().map(score).collect();
            let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let odds: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
            let all: f64 = odds.iter().sum();
            for i in 0..d {
                let sum: f64 = odds
                    .iter()
                    .zip(&values)
                    .map(|(o, v)| o * f64::from(v[i]))
                    .sum();
                out.push((sum / all) as f32);
            }
        }
    }
    Ok(out)
}

pub(super) fn decode(c: &mut Context<'_, '_>) -> Result<()> {
    let shape = Shape::read(c)?;
    let (qkv, positions) = (c.f32s("qkv")?, c.i32s("positions")?);
    let ld = c.int("ldqkv");
    for m in 0..c.grid(2) {
        let position = c.slice("positions", &positions, m, 1)?[0];
        let position = usize::try_from(position)
            .map_err(|_| c.fault(format!("position {position} is none")))?;
        let row = c.slice("qkv", &qkv, m * ld, ld)?.to_vec();
        let queries = append_token(c, &shape, &row, m, position)?;
        let out = attend(c, &shape, &queries, m, position)?;
        let at = m * c.int("ldy");
        c.store("y", at, &out)?;
    }
    Ok(())
}

/// Tokens, positions before them, sequence.
fn prompt(c: &Context<'_, '_>) -> Result<(usize, usize, usize)> {
    let scalars = c.i32s("scalars")?;
    let scalars = c.slice("scalars", &scalars, 0, 3)?;
    let of =
        |i: usize| usize::try_from(scalars[i]).map_err(|_| c.fault("a device scalar is negative"));
    Ok((of(0)?.min(c.tokens()), of(1)?, of(2)?))
}

pub(super) fn append(c: &mut Context<'_, '_>) -> Result<()> {
    let shape = Shape::read(c)?;
    let (tokens, past, sequence) = prompt(c)?;
    let (qkv, ld, q0) = (c.f32s("qkv")?, c.int("ldqkv"), c.int("q_offset"));
    for token in 0..tokens {
        let row = c.slice("qkv", &qkv, token * ld, ld)?.to_vec();
        let queries = append_token(c, &shape, &row, sequence, past + token)?;
        c.store("qkv", token * ld + q0, &queries)?;
    }
    Ok(())
}

pub(super) fn prefill(c: &mut Context<'_, '_>) -> Result<()> {
    let shape = Shape::read(c)?;
    let (tokens, past, sequence) = prompt(c)?;
    let (qkv, ld, q0) = (c.f32s("qkv")?, c.int("ldqkv"), c.int("q_offset"));
    for token in 0..tokens {
        let queries = c.slice("qkv", &qkv, token * ld + q0, shape.heads * shape.head_dim)?;
        let out = attend(c, &shape, queries, sequence, past + token)?;
        let at = token * c.int("ldy");
        c.store("y", at, &out)?;
    }
    Ok(())
}
