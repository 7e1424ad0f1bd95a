//! The linear kernels: `y = (Q + S + U·V) x` with what stands before and behind it.

use half::f16;

use super::Result;
use super::context::Context;
use super::q8;
use super::small::{activate, norm_row};
use super::unpack::{self, Rows};
use super::work::{sorted, works};

/// A row of activations in the forms that terms take.
struct Input {
    /// For low-rank, sparse and dense terms.
    plain: Vec<f32>,
    /// Times the scales of columns, for codes.
    scaled: Vec<f32>,
    /// The same in 8 bits, where codes take that.
    rounded: Option<q8::Row>,
}

pub(super) fn run(c: &mut Context<'_, '_>) -> Result<()> {
    let prefill = c.kernel() == "linear_prefill";
    let experts = c.define("EXPERTS");
    let tokens = match prefill {
        true => c.live_tokens(c.tokens())?,
        false => match experts {
            0 => usize::try_from(c.define("M")).unwrap_or(0),
            1 => c.grid(1) / c.int("top_k").max(1),
            _ => c.grid(1),
        },
    };
    let (cols, ldx, tiles) = (c.int("cols"), c.int("ldx"), c.int("tiles"));
    let works = match (prefill, experts) {
        (true, 1..) => sorted(c)?,
        _ => works(c, tokens, experts)?,
    };
    let rows_of_x = works
        .iter()
        .flat_map(|w| w.from.iter().map(|f| f.0 + 1))
        .max()
        .unwrap_or(0);
    let inputs = inputs(c, rows_of_x, cols, ldx, prefill)?;
    let low_rank = LowRank::read(c)?;
    let sparse = Sparse::read(c, cols)?;
    let epilogue = Epilogue::read(c)?;
    let apart = c.define("ROTATED") == 2;
    for work in works {
        let mut sum = vec![0f64; tiles * 16];
        // Of the terms, where their coordinates are not those of the codes.
        let mut rest = vec![0f64; tiles * 16];
        let mut row = vec![0f32; tiles * 16];
        for &(x, expert, weight) in &work.from {
            let input = inputs
                .get(x)
                .ok_or_else(|| c.fault("an input row that there is not"))?;
            let h = low_rank
                .as_ref()
                .map(|l| l.inner(c, &input.plain, expert))
                .transpose()?;
            for tile in 0..tiles {
                let at = expert * tiles + tile;
                let mut acc = [0f64; 16];
                let mut other = [0f64; 16];
                if let Some(rows) = unpack::rows(c, at, cols)? {
                    base(c, &rows, input, &mut acc);
                }
                let terms = if apart { &mut other } else { &mut acc };
                if let Some((low_rank, h)) = low_rank.as_ref().zip(h.as_ref()) {
                    low_rank.outer(c, h, at, terms)?;
                }
                if let Some(sparse) = &sparse {
                    sparse.add(c, &input.plain, at, terms)?;
                }
                for (rest, other) in rest[tile * 16..][..16].iter_mut().zip(other) {
                    *rest += other;
                }
                for (sum, acc) in sum[tile * 16..][..16].iter_mut().zip(acc) {
                    *sum += f64::from(weight) * acc;
                }
            }
        }
        row.iter_mut().zip(&sum).for_each(|(r, s)| *r = *s as f32);
        let tile = match (prefill, work.from.as_slice()) {
            (true, [(_, expert, _)]) => expert * tiles,
            _ => 0,
        };
        if apart {
            let mut rest: Vec<f32> = rest.iter().map(|v| *v as f32).collect();
            epilogue.apply(c, &mut rest, work.y, tile)?;
            c.store("y_terms", work.y * c.int("ldt"), &rest)?;
            row.iter_mut().for_each(|v| *v *= epilogue.scale);
        } else {
            epilogue.apply(c, &mut row, work.y, tile)?;
        }
        let at = work.y * c.int("ldy");
        c.store("y", at, &row)?;
    }
    Ok(())
}

/// `h = V x` of many tokens; the launch behind it computes it again, so that it needs no order of sums.
pub(super) fn inner(c: &mut Context<'_, '_>) -> Result<()> {
    let works = match c.define("EXPERTS") {
        0 => works(c, c.live_tokens(c.tokens())?, 0)?,
        _ => sorted(c)?,
    };
    let (ldx, rank) = (c.int("ldx"), c.int("rank"));
    let x = c.f16s("x")?;
    let scales = match c.is_null("v_scales") {
        true => Vec::new(),
        false => c.f16s("v_scales")?,
    };
    let low_rank = LowRank {
        v: c.bytes("v")?.to_vec(),
        v_scales: scales,
        v_tiles: c.u32s("v_tiles")?,
        v_index: match c.is_null("v_index") {
            true => None,
            false => Some(c.u32s("v_index")?),
        },
        u: Vec::new(),
        u_scales: Vec::new(),
        u_tiles: Vec::new(),
        u_index: Vec::new(),
        rank,
    };
    for work in works {
        for (from, expert, _) in work.from {
            let row = c.slice("x", &x, from * ldx, ldx)?;
            let h = low_rank.inner(c, row, expert)?;
            c.store("h", work.y * rank, &h)?;
        }
    }
    Ok(())
}

fn inputs(
    c: &Context<'_, '_>,
    rows: usize,
    cols: usize,
    ldx: usize,
    prefill: bool,
) -> Result<Vec<Input>> {
    let x = match (prefill, c.is_null("x")) {
        (true, _) => c.f16s("x")?,
        // Nothing but codes is multiplied, and those have their own.
        (false, true) => vec![0.0; rows.saturating_mul(ldx.max(cols))],
        (false, false) => c.f32s("x")?,
    };
    let rotated = match c.define("ROTATED") > 0 && c.define("XIN") == 0 {
        true => Some(c.f32s("xr")?),
        false => None,
    };
    let passed = match c.define("XIN") {
        3 => Some((c.bytes("xq")?.to_vec(), c.f32s("xs")?, c.i32s("xsum")?)),
        _ => None,
    };
    let xscale = match c.define("XSCALE") {
        1 => Some(c.f32s("xscale")?),
        _ => None,
    };
    let coded = matches!(c.define("FORMAT"), 0 | 4);
    let mut inputs = Vec::with_capacity(rows);
    for m in 0..rows {
        let row = c.slice("x", &x, m * ldx, cols)?;
        let plain = match c.define("XIN") {
            0 | 3 => row.to_vec(),
            kind @ (1 | 2) => {
                let gain = c.f32s("gain")?;
                let beta = if c.is_null("beta") {
                    None
                } else {
                    Some(c.f32s("beta")?)
                };
                let gain = c.slice("gain", &gain, 0, cols)?;
                norm_row(row, gain, beta.as_deref(), c.float("eps"), kind == 2)
            }
            other => return Err(c.fault(format!("XIN={other} is not known to the interpreter"))),
        };
        let seen = match &rotated {
            Some(xr) => c.slice("xr", xr, m * c.int("ldxr"), cols)?,
            None => &plain,
        };
        let scaled: Vec<f32> = match &xscale {
            Some(scale) => seen.iter().zip(scale).map(|(x, s)| x * s).collect(),
            None => seen.to_vec(),
        };
        // Tensor cores take f16 where a prompt's activations are not f16 yet.
        let scaled = match prefill && xscale.is_some() {
            true => scaled.iter().map(|x| f16::from_f32(*x).to_f32()).collect(),
            false => scaled,
        };
        let rounded = match &passed {
            Some((codes, scales, sums)) => {
                let padded = cols.next_multiple_of(64);
                let blocks = padded / q8::BLOCK;
                Some(q8::Row::from_lanes(
                    c.slice("xq", codes, m * padded, padded)?,
                    c.slice("xs", scales, m * blocks, blocks)?,
                    c.slice("xsum", sums, m * blocks, blocks)?,
                ))
            }
            None => (coded && !prefill && c.define("ACT") == 0).then(|| q8::round(&scaled)),
        };
        inputs.push(Input {
            plain,
            scaled,
            rounded,
        });
    }
    Ok(inputs)
}

/// Adds a row tile's product.
fn base(c: &Context<'_, '_>, rows: &Rows, input: &Input, acc: &mut [f64; 16]) {
    let dense = matches!(c.define("FORMAT"), 1..=3);
    let x = if dense { &input.plain } else { &input.scaled };
    for (r, acc) in acc.iter_mut().enumerate() {
        let values = &rows.values[r * rows.padded..][..rows.padded];
        for (g, values) in values.chunks(rows.group).enumerate() {
            let scale = rows.scales.get(g * 16 + r).copied();
            let zero = rows.zeros.get(g * 16 + r).copied().unwrap_or(0.0);
            let start = g * rows.group;
            if start >= x.len() {
                break;
            }
            let factor = match (scale, dense) {
                (_, true) => 1.0,
                (Some(scale), _) => f64::from(scale),
                (None, _) => 0.0,
            };
            match &input.rounded {
                None => {
                    let products = values.iter().zip(&x[start..]);
                    let sum: f64 = products
                        .map(|(w, x)| f64::from(w - zero) * f64::from(*x))
                        .sum();
                    *acc += factor * sum;
                }
                Some(row) => {
                    for (b, values) in values.chunks(q8::BLOCK).enumerate() {
                        let block = start / q8::BLOCK + b;
                        let (Some(&scale), Some(&total)) =
                            (row.scales.get(block), row.sums.get(block))
                        else {
                            break;
                        };
                        let codes = &row.codes[block * q8::BLOCK..];
                        let dot: i32 = values.iter().zip(codes).map(|(w, x)| *w as i32 * x).sum();
                        let dot = dot - zero as i32 * total;
                        *acc += factor * f64::from(scale) * f64::from(dot);
                    }
                }
            }
        }
    }
}

struct LowRank {
    v: Vec<u8>,
    v_scales: Vec<f32>,
    v_tiles: Vec<u32>,
    v_index: Option<Vec<u32>>,
    u: Vec<u8>,
    u_scales: Vec<f32>,
    u_tiles: Vec<u32>,
    u_index: Vec<u32>,
    rank: usize,
}

impl LowRank {
    fn read(c: &Context<'_, '_>) -> Result<Option<Self>> {
        if c.define("LOWRANK") == 0 {
            return Ok(None);
        }
        let scales = |name: &str| {
            if c.is_null(name) {
                Ok(Vec::new())
            } else {
                c.f16s(name)
            }
        };
        Ok(Some(Self {
            v: c.bytes("v")?.to_vec(),
            v_scales: scales("v_scales")?,
            v_tiles: c.u32s("v_tiles")?,
            v_index: if c.is_null("v_index") {
                None
            } else {
                Some(c.u32s("v_index")?)
            },
            u: c.bytes("u")?.to_vec(),
            u_scales: scales("u_scales")?,
            u_tiles: c.u32s("u_tiles")?,
            u_index: c.u32s("u_index")?,
            rank: c.int("rank"),
        }))
    }

    /// `h = V x` of the blocks of an expert.
    fn inner(&self, c: &Context<'_, '_>, x: &[f32], expert: usize) -> Result<Vec<f32>> {
        let format = c.define("VFORMAT");
        let range = match &self.v_index {
            Some(index) => {
                let ends = c.slice("v_index", index, expert, 2)?;
                ends[0] as usize..ends[1] as usize
            }
            None => 0..self.v_tiles.len() / 6,
        };
        let mut h = vec![0f32; self.rank];
        for tile in range {
            let entry = c.slice("v_tiles", &self.v_tiles, tile * 6, 6)?;
            let [first, rows, col0, cols, start, scale0] =
                [0, 1, 2, 3, 4, 5].map(|i| entry[i] as usize);
            let bits = usize::try_from(format).unwrap_or(0);
            let stride = (cols * bits).div_ceil(8).next_multiple_of(16);
            let group = if format == 4 { 32 } else { 64 };
            let x = c.slice("x", x, col0, cols)?;
            for r in 0..rows {
                let row = c.slice("v", &self.v, start * 16 + r * stride, stride)?;
                let mut sum = 0f64;
                for (k, x) in x.iter().enumerate() {
                    let scale = match format {
                        4 | 8 => {
                            let at = scale0 + r * cols.div_ceil(group) + k / group;
                            c.slice("v_scales", &self.v_scales, at, 1)?[0]
                        }
                        _ => 1.0,
                    };
                    sum += f64::from(entry_of(row, k, format) * scale) * f64::from(*x);
                }
                let slot = h.get_mut(first + r);
                *slot.ok_or_else(|| c.fault("a block of V beyond the rank"))? = sum as f32;
            }
        }
        Ok(h)
    }

    /// Adds the rows of U of a row tile, times h.
    fn outer(
        &self,
        c: &Context<'_, '_>,
        h: &[f32],
        tile: usize,
        acc: &mut [f64; 16],
    ) -> Result<()> {
        let format = c.define("UFORMAT");
        let bytes = usize::try_from(format).unwrap_or(0) * 32;
        let ends = c.slice("u_index", &self.u_index, tile, 2)?;
        for entry in ends[0] as usize..ends[1] as usize {
            let entry = c.slice("u_tiles", &self.u_tiles, entry * 4, 4)?;
            let [first, h0, steps, scale0] = [0, 1, 2, 3].map(|i| entry[i] as usize);
            for step in 0..steps {
                let packed = c.slice("u", &self.u, (first + step) * bytes, bytes)?;
                let h = c.slice("h", h, h0 + step * 16, 16)?;
                for lane in 0..32 {
                    let (g, t) = (lane / 4, lane % 4);
                    for (half, b) in (0..2).flat_map(|half| (0..4).map(move |b| (half, b))) {
                        let row = g + 8 * half;
                        let value = match format {
                            4 => {
                                let byte = packed[lane * 4 + b];
                                f32::from(byte >> (4 * half) & 15) - 8.0
                            }
                            _ => entry_of(packed, lane * 8 + half * 4 + b, format),
                        };
                        let scale = match format {
                            4 => Some(scale0 + step / 2 * 16),
                            8 => Some(scale0),
                            _ => None,
                        };
                        let scale = match scale {
                            Some(at) => c.slice(
                                "u_scales",
                                &self.u_scales,
                                at + 2 * (row % 8) + row / 8,
                                1,
                            )?[0],
                            None => 1.0,
                        };
                        acc[row] += f64::from(value * scale) * f64::from(h[4 * t + b]);
                    }
                }
            }
        }
        Ok(())
    }
}

/// Entry `k` of a row in a factor's format.
fn entry_of(row: &[u8], k: usize, format: i64) -> f32 {
    match format {
        32 => f32::from_le_bytes([row[4 * k], row[4 * k + 1], row[4 * k + 2], row[4 * k + 3]]),
        16 => f16::from_le_bytes([row[2 * k], row[2 * k + 1]]).to_f32(),
        8 => f32::from(row[k] as i8),
        _ => f32::from(row[k / 2] >> (4 * (k % 2)) & 15) - 8.0,
    }
}

struct Sparse {
    entries: Vec<u32>,
    offsets: Vec<u32>,
    chunks: usize,
}

impl Sparse {
    fn read(c: &Context<'_, '_>, cols: usize) -> Result<Option<Self>> {
        if c.define("SPARSE") == 0 {
            return Ok(None);
        }
        Ok(Some(Self {
            entries: c.u32s("s")?,
            offsets: c.u32s("s_offsets")?,
            chunks: cols.div_ceil(4096),
        }))
    }

    fn add(&self, c: &Context<'_, '_>, x: &[f32], tile: usize, acc: &mut [f64; 16]) -> Result<()> {
        for chunk in 0..self.chunks {
            let ends = c.slice("s_offsets", &self.offsets, tile * self.chunks + chunk, 2)?;
            let (start, end) = (ends[0] as usize, ends[1] as usize);
            let Some(run) = self.entries.get(start..end).filter(|run| !run.is_empty()) else {
                continue;
            };
            let heads = c.slice("s", run, 0, 8)?;
            let mut from = 8;
            for (row, acc) in acc.iter_mut().enumerate() {
                let end = 8 + (heads[row / 2] >> (16 * (row % 2)) & 0xffff) as usize;
                let count = end.saturating_sub(from);
                for entry in c.slice("s", run, from, count)? {
                    let value = f16::from_bits((entry >> 16) as u16).to_f64();
                    let column = chunk * 4096 + (entry & 0xfff) as usize;
                    if (entry >> 12 & 15) as usize != row {
                        return Err(c.fault("a sparse entry stands among those of another row"));
                    }
                    *acc += value * f64::from(c.slice("x", x, column, 1)?[0]);
                }
                from = end;
            }
        }
        Ok(())
    }
}

/// What happens to a row of sums.
struct Epilogue {
    bias: Option<Vec<f32>>,
    residual: Option<Vec<f32>>,
    scale: f32,
}

impl Epilogue {
    fn read(c: &Context<'_, '_>) -> Result<Self> {
        let given = |define: &str, name: &str| match c.define(define) {
            1 => c.f32s(name).map(Some),
            _ => Ok(None),
        };
        Ok(Self {
            bias: given("BIAS", "bias")?,
            residual: given("RESIDUAL", "residual")?,
            scale: c.float("scale"),
        })
    }

    /// `row` becomes what `y` gets: half as long for a gate.
    /// The bias is that of row tile `tile` and those behind it.
    fn apply(&self, c: &Context<'_, '_>, row: &mut Vec<f32>, y: usize, tile: usize) -> Result<()> {
        if let Some(bias) = &self.bias {
            let bias = c.slice("bias", bias, tile * 16, row.len())?;
            row.iter_mut().zip(bias).for_each(|(v, b)| *v += b);
        }
        let kind = c.define("ACTIVATION");
        if c.define("GLU") == 1 {
            let pairs = row.chunks(32).flat_map(|pair| {
                let (gate, up) = pair.split_at(16.min(pair.len()));
                gate.iter()
                    .zip(up)
                    .map(|(g, u)| activate(kind, *g) * u)
                    .collect::<Vec<_>>()
            });
            *row = pairs.collect();
        } else {
            row.iter_mut().for_each(|v| *v = activate(kind, *v));
        }
        row.iter_mut().for_each(|v| *v *= self.scale);
        if c.define("SOFTCAP") == 1 {
            let cap = c.float("softcap");
            row.iter_mut().for_each(|v| *v = cap * (*v / cap).tanh());
        }
        if let Some(residual) = &self.residual {
            let residual = c.slice("residual", residual, y * c.int("ldr"), row.len())?;
            row.iter_mut().zip(residual).for_each(|(v, r)| *v += r);
        }
        Ok(())
    }
}
