//! Native ops, attention and losses in `f64`.

use std::collections::HashMap;

use hlrc::ir::{Activation, Native, Op, Training, ValueId};
use hlrc::numeric::hadamard::Rotation;

use super::{Array, Reference};

impl Reference<'_> {
    pub(super) fn native(
        &self,
        native: &Native,
        x: &Array,
        second: Option<Array>,
        third: Option<Array>,
        op: &Op,
        values: &HashMap<ValueId, Array>,
    ) -> Array {
        let like = |data| Array::new(&x.shape, data);
        let each = |f: &dyn Fn(f64) -> f64| like(x.data.iter().map(|&x| f(x)).collect());
        match native {
            Native::RmsNorm {
                eps,
                unit_offset,
                slice,
            } => {
                let gain = second.expect("a gain").data;
                let part = slice.map_or(x.width(), |s| s as usize);
                let offset = if *unit_offset { 1.0 } else { 0.0 };
                let row = |row: &[f64]| {
                    let mean = row.iter().map(|x| x * x).sum::<f64>() / part as f64;
                    let r = 1.0 / (mean + eps).sqrt();
                    row.iter()
                        .zip(&gain)
                        .map(|(x, g)| x * r * (g + offset))
                        .collect::<Vec<f64>>()
                };
                like(x.data.chunks(part).flat_map(row).collect())
            }
            Native::LayerNorm { eps } => {
                let (gain, bias) = (second.expect("a gain").data, third.map(|b| b.data));
                let n = x.width() as f64;
                let row = |row: &[f64]| {
                    let mean = row.iter().sum::<f64>() / n;
                    let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
                    let r = 1.0 / (variance + eps).sqrt();
                    let value = |i: usize| {
                        (row[i] - mean) * r * gain[i] + bias.as_ref().map_or(0.0, |b| b[i])
                    };
                    (0..row.len()).map(value).collect::<Vec<f64>>()
                };
                like(x.data.chunks(x.width()).flat_map(row).collect())
            }
            Native::Rope {
                heads,
                head_dim,
                rotary_dim,
                theta,
                interleaved,
                ..
            } => {
                let positions = second.expect("positions").data;
                let (d, pairs) = (*head_dim as usize, *rotary_dim as usize / 2);
                let mut out = x.data.clone();
                for t in 0..x.rows() {
                    for h in 0..*heads as usize {
                        let head = &mut out[t * x.width() + h * d..][..d];
                        for k in 0..pairs {
                            let angle = positions[t % positions.len()]
                                * theta.powf(-(k as f64) / pairs as f64);
                            let (i, j) = if *interleaved {
                                (2 * k, 2 * k + 1)
                            } else {
                                (k, k + pairs)
                            };
                            let (a, b) = (head[i], head[j]);
                            head[i] = a * angle.cos() - b * angle.sin();
                            head[j] = b * angle.cos() + a * angle.sin();
                        }
                    }
                }
                like(out)
            }
            Native::Attention { .. } => {
                let mask = op
                    .inputs
                    .get(3)
                    .map(|o| self.operand(o, values))
                    .filter(|m| !m.data.is_empty());
                attention(
                    native,
                    x,
                    &second.expect("keys"),
                    &third.expect("values"),
                    mask.as_ref(),
                )
            }
            Native::Activate { function } => {
                let f: &dyn Fn(f64) -> f64 = match function {
                    Activation::Silu => &|x| x / (1.0 + (-x).exp()),
                    Activation::Gelu => &|x| x * normal_below(x),
                    Activation::GeluTanh => &|x| {
                        let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
                        0.5 * x * (1.0 + u.tanh())
                    },
                    Activation::Relu => &|x| x.max(0.0),
                    Activation::Tanh => &|x| x.tanh(),
                };
                each(f)
            }
            Native::Hadamard {
                block,
                seed,
                inverse,
            } => hadamard(x, *block as usize, *seed, *inverse),
            Native::Softcap { cap } => each(&|x| cap * (x / cap).tanh()),
            Native::Scale { factor } => {
                let factor = second.map_or(*factor, |w| w.data[0]);
                each(&|x| x * factor)
            }
            Native::Add | Native::Mul => {
                let y = second.expect("two operands");
                let (long, short) = if x.data.len() >= y.data.len() {
                    (x, &y)
                } else {
                    (&y, x)
                };
                let n = short.data.len();
                let pair = |(i, a): (usize, &f64)| match native {
                    Native::Add => a + short.data[i % n],
                    _ => a * short.data[i % n],
                };
                Array::new(
                    &long.shape,
                    long.data.iter().enumerate().map(pair).collect(),
                )
            }
            Native::Slice { start, width } => {
                let (start, width) = (*start as usize, *width as usize);
                let mut shape = x.shape.clone();
                *shape.last_mut().expect("a width") = width;
                let rows = (0..x.rows()).flat_map(|r| x.row(r)[start..start + width].to_vec());
                Array::new(&shape, rows.collect())
            }
            Native::Positions => {
                let len = x.width();
                like((0..x.data.len()).map(|i| (i % len) as f64).collect())
            }
            Native::FirstToken => {
                let (count, len) = x.sequences();
                let rows = (0..count).flat_map(|s| x.row(s * len).to_vec());
                Array::new(&[count, x.width()], rows.collect())
            }
        }
    }
}

pub(super) fn softmax(x: &[f64]) -> Vec<f64> {
    let top = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let e: Vec<f64> = x.iter().map(|x| (x - top).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.iter().map(|e| e / sum).collect()
}

/// R x of each row by R's entries, or Rᵀ x.
fn hadamard(x: &Array, block: usize, seed: u64, inverse: bool) -> Array {
    let rotation = Rotation { block, seed };
    let entry = |i: usize, j: usize| {
        let odd = (i & j & (block - 1)).count_ones() % 2 == 1;
        let sign = if odd { -1.0 } else { 1.0 };
        sign * f64::from(rotation.sign(j)) / (block as f64).sqrt()
    };
    let row = |row: &[f64]| {
        let value = |i: usize| {
            let first = i / block * block;
            let of = |j: usize| match inverse {
                false => entry(i, j) * row[j],
                true => entry(j, i) * row[j],
            };
            (first..first + block).map(of).sum()
        };
        (0..row.len()).map(value).collect::<Vec<f64>>()
    };
    Array::new(&x.shape, x.data.chunks(x.width()).flat_map(row).collect())
}

/// Φ by its series about 0, which converges everywhere.
fn normal_below(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for k in 1..200 {
        term *= x * x / (2 * k + 1) as f64;
        sum += term;
    }
    0.5 + sum * (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt()
}

fn attention(native: &Native, q: &Array, k: &Array, v: &Array, mask: Option<&Array>) -> Array {
    let Native::Attention {
        heads,
        kv_heads,
        head_dim,
        scale,
        causal,
        window,
        softcap,
        ..
    } = native
    else {
        unreachable!()
    };
    let (heads, d) = (*heads as usize, *head_dim as usize);
    let group = heads / *kv_heads as usize;
    let (count, len) = q.sequences();
    let keys = k.sequences().1;
    let mut out = vec![0f64; q.data.len()];
    for s in 0..count {
        for h in 0..heads {
            for i in 0..len {
                let query = &q.row(s * len + i)[h * d..(h + 1) * d];
                let kv = h / group * d;
                let seen = |j: usize| {
                    (!causal || j <= i)
                        && window.is_none_or(|w| j + w as usize > i)
                        && mask.is_none_or(|m| m.data[s * keys + j] != 0.0)
                };
                let score = |j: usize| {
                    let key = &k.row(s * keys + j)[kv..kv + d];
                    let plain = scale * query.iter().zip(key).map(|(a, b)| a * b).sum::<f64>();
                    softcap.map_or(plain, |c| c * (plain / c).tanh())
                };
                let scores: Vec<f64> = (0..keys)
                    .map(|j| if seen(j) { score(j) } else { f64::NEG_INFINITY })
                    .collect();
                let p = softmax(&scores);
                for c in 0..d {
                    let at = (s * len + i) * q.width() + h * d + c;
                    out[at] = (0..keys).map(|j| p[j] * v.row(s * keys + j)[kv + c]).sum();
                }
            }
        }
    }
    Array::new(&q.shape, out)
}

pub(super) fn loss(
    training: &Training,
    x: &Array,
    held: &Array,
    third: Option<&Array>,
    t: usize,
) -> f64 {
    let row = x.row(t);
    let log = |p: f64| p.ln();
    match training {
        Training::CrossEntropy => {
            let label = held.data[t];
            if label < 0.0 {
                0.0
            } else {
                -log(softmax(row)[label as usize])
            }
        }
        Training::Kl => {
            let (p, q) = (softmax(held.row(t)), softmax(row));
            p.iter().zip(&q).map(|(p, q)| p * (log(*p) - log(*q))).sum()
        }
        Training::TopKl => {
            let q = softmax(row);
            let log_p = third.expect("log-probabilities").row(t);
            let ids: Vec<usize> = held.row(t).iter().map(|&i| i as usize).collect();
            let kept: f64 = log_p.iter().map(|l| l.exp()).sum();
            let own: f64 = ids.iter().map(|&i| q[i]).sum();
            let single: f64 = ids
                .iter()
                .zip(log_p)
                .map(|(&i, l)| l.exp() * (l - log(q[i])))
                .sum();
            single + (1.0 - kept) * (log(1.0 - kept) - log(1.0 - own))
        }
        Training::MeanSquare => {
            let gaps = row.iter().zip(held.row(t)).map(|(a, b)| (a - b).powi(2));
            gaps.sum::<f64>() / row.len() as f64
        }
        _ => unreachable!(),
    }
}
