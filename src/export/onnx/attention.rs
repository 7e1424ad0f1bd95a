//! Rotary embedding and attention → standard ONNX ops.

use super::ExportError;
use super::lower::{Lowerer, Site};
use crate::ir::{Attr, Native, Operand, RopeScaling};
use crate::weights::DType;

/// Scores of what a position must not see; finite, so that a row of nothing
/// but these stays a number.
const HIDDEN: f64 = -1e30;

impl Lowerer<'_> {
    /// Rotates each head of `x` by its position.
    pub(super) fn rope(
        &mut self,
        site: &mut Site,
        (x, positions): (Operand, Operand),
        native: &Native,
    ) -> Result<Operand, ExportError> {
        let Native::Rope {
            heads,
            head_dim,
            rotary_dim,
            theta,
            interleaved,
            scaling,
        } = native
        else {
            return Ok(x);
        };
        let (heads, head, rotary) = (*heads as i64, *head_dim as i64, *rotary_dim as i64);
        let (cos, sin) = self.angles(site, positions, *theta, *rotary_dim, scaling.as_ref())?;
        let split = self.reshape(site, x, &[0, 0, heads, head]);
        let (a, b) = if *interleaved {
            (
                self.cut(site, split, (0, rotary), 2),
                self.cut(site, split, (1, rotary), 2),
            )
        } else {
            let half = rotary / 2;
            (
                self.cut(site, split, (0, half), 1),
                self.cut(site, split, (half, rotary), 1),
            )
        };
        let mut mul = |x, y| self.standard(site, "Mul", vec![x, y], Vec::new());
        let (ac, bs, bc, sa) = (mul(a, cos), mul(b, sin), mul(b, cos), mul(a, sin));
        let first = self.standard(site, "Sub", vec![ac, bs], Vec::new());
        let second = self.standard(site, "Add", vec![bc, sa], Vec::new());
        let last = vec![("axis", Attr::Int(-1))];
        let mut parts = vec![first, second];
        if *interleaved {
            let first = self.unsqueeze(site, first, -1);
            let second = self.unsqueeze(site, second, -1);
            let pairs = self.standard(site, "Concat", vec![first, second], last.clone());
            parts = vec![self.reshape(site, pairs, &[0, 0, heads, rotary])];
        }
        if rotary < head {
            parts.push(self.cut(site, split, (rotary, head), 1));
        }
        let rotated = match parts.as_slice() {
            [one] => *one,
            _ => self.standard(site, "Concat", parts, last),
        };
        Ok(self.reshape(site, rotated, &[0, 0, heads * head]))
    }

    /// Cosines and sines `[B,S,1,rotary/2]`, made once for all layers.
    fn angles(
        &mut self,
        site: &mut Site,
        positions: Operand,
        theta: f64,
        rotary: u64,
        scaling: Option<&RopeScaling>,
    ) -> Result<(Operand, Operand), ExportError> {
        let key = format!("angles {positions:?} {theta} {rotary} {scaling:?}");
        if let Some(&[cos, sin]) = self.shared.get(&key).map(Vec::as_slice) {
            return Ok((cos, sin));
        }
        if matches!(scaling, Some(RopeScaling::Dynamic { .. })) {
            let what = "dynamic rope scaling is written as it is within the original context";
            self.notes.push(what.to_owned());
        }
        let (frequencies, factor) = frequencies(theta, rotary, scaling);
        let frequencies = self.floats(site, "frequencies", &frequencies);
        let to = vec![("to", Attr::Int(i64::from(DType::F32.onnx_number())))];
        let positions = self.standard(site, "Cast", vec![positions], to);
        let positions = self.unsqueeze(site, positions, -1);
        let angles = self.standard(site, "Mul", vec![positions, frequencies], Vec::new());
        let angles = self.unsqueeze(site, angles, 2);
        let (mut cos, mut sin) = (
            self.unary(site, "Cos", angles),
            self.unary(site, "Sin", angles),
        );
        if factor != 1.0 {
            cos = self.times(site, cos, factor)?;
            sin = self.times(site, sin, factor)?;
        }
        self.shared.insert(key, vec![cos, sin]);
        Ok((cos, sin))
    }

    /// Softmax attention over the past, if there is a cache, and the sequence.
    pub(super) fn attention(
        &mut self,
        site: &mut Site,
        inputs: &[Operand],
        native: &Native,
    ) -> Result<Operand, ExportError> {
        let Native::Attention {
            heads,
            kv_heads,
            head_dim,
            scale,
            softcap,
            ..
        } = native
        else {
            return Ok(Operand::None);
        };
        let input = |at: usize| inputs.get(at).copied().unwrap_or(Operand::None);
        let (heads, kv, head) = (*heads as i64, *kv_heads as i64, *head_dim as i64);
        let q = self.reshape(site, input(0), &[0, 0, heads, head]);
        let q = self.transpose(site, q, &[0, 2, 1, 3]);
        let k = self.reshape(site, input(1), &[0, 0, kv, head]);
        let k = self.transpose(site, k, &[0, 2, 1, 3]);
        let v = self.reshape(site, input(2), &[0, 0, kv, head]);
        let v = self.transpose(site, v, &[0, 2, 1, 3]);
        let (k, v) = self.with_past(site, (k, v), native)?;
        let k = self.transpose(site, k, &[0, 1, 3, 2]);
        let (k, v) = (
            self.repeat_heads(site, k, (heads, kv), &[0, heads, head, -1]),
            self.repeat_heads(site, v, (heads, kv), &[0, heads, -1, head]),
        );
        let scores = self.standard(site, "MatMul", vec![q, k], Vec::new());
        let mut scores = self.times(site, scores, *scale)?;
        if let Some(cap) = softcap {
            scores = self.softcap(site, scores, *cap)?;
        }
        if let Some(seen) = self.mask(site, input(0), input(3), native)? {
            let hidden = self.number(site, HIDDEN)?;
            scores = self.standard(site, "Where", vec![seen, scores, hidden], Vec::new());
        }
        let shares = self.standard(site, "Softmax", vec![scores], vec![("axis", Attr::Int(-1))]);
        let mixed = self.standard(site, "MatMul", vec![shares, v], Vec::new());
        let mixed = self.transpose(site, mixed, &[0, 2, 1, 3]);
        Ok(self.reshape(site, mixed, &[0, 0, heads * head]))
    }

    fn transpose(&mut self, site: &mut Site, x: Operand, perm: &[i64]) -> Operand {
        let perm = vec![("perm", Attr::Ints(perm.to_vec()))];
        self.standard(site, "Transpose", vec![x], perm)
    }

    /// Each key-value head for every query head that shares it.
    fn repeat_heads(
        &mut self,
        site: &mut Site,
        x: Operand,
        (heads, kv): (i64, i64),
        shape: &[i64],
    ) -> Operand {
        if heads == kv || kv == 0 {
            return x;
        }
        let apart = self.unsqueeze(site, x, 2);
        let times = self.ints(site, "times", &[1, 1, heads / kv, 1, 1]);
        let repeated = self.standard(site, "Expand", vec![apart, times], Vec::new());
        self.reshape(site, repeated, shape)
    }

    /// Which positions see which, as booleans that broadcast to the scores.
    fn mask(
        &mut self,
        site: &mut Site,
        q: Operand,
        keys: Operand,
        native: &Native,
    ) -> Result<Option<Operand>, ExportError> {
        let Native::Attention {
            causal,
            window,
            cache,
            ..
        } = native
        else {
            return Ok(None);
        };
        if !causal && window.is_none() && keys == Operand::None {
            return Ok(None);
        }
        let key = format!("mask {causal} {window:?} {keys:?} {}", cache.is_some());
        if let Some(&[mask]) = self.shared.get(&key).map(Vec::as_slice) {
            return Ok(Some(mask));
        }
        let mut parts = Vec::new();
        if *causal || window.is_some() {
            let length = self.size(site, q, 1);
            let new = self.range(site, length);
            let (mut column, mut row) = (new, new);
            let past = match native {
                Native::Attention { cache: Some(_), .. } => self.past_length(site),
                _ => None,
            };
            if let Some(past) = past {
                row = self.standard(site, "Add", vec![new, past], Vec::new());
                let total = self.standard(site, "Add", vec![length, past], Vec::new());
                column = self.range(site, total);
            }
            let row = self.unsqueeze(site, row, 1);
            if *causal {
                parts.push(self.standard(site, "LessOrEqual", vec![column, row], Vec::new()));
            }
            if let Some(window) = window {
                let window = (*window as i64).to_le_bytes().to_vec();
                let window = self.inline(site, "window", DType::I64, &[], window);
                let first = self.standard(site, "Sub", vec![row, window], Vec::new());
                parts.push(self.standard(site, "Greater", vec![column, first], Vec::new()));
            }
        }
        if keys != Operand::None {
            let to = vec![("to", Attr::Int(i64::from(DType::Bool.onnx_number())))];
            let seen = self.standard(site, "Cast", vec![keys], to);
            let axes = self.ints(site, "axes", &[1, 2]);
            parts.push(self.standard(site, "Unsqueeze", vec![seen, axes], Vec::new()));
        }
        let (first, rest) = match parts.split_first() {
            Some((first, rest)) => (*first, rest.to_vec()),
            None => return Ok(None),
        };
        let both = |seen, part| self.standard(site, "And", vec![seen, part], Vec::new());
        let mask = rest.into_iter().fold(first, both);
        self.shared.insert(key, vec![mask]);
        Ok(Some(mask))
    }
}

/// Frequencies of the pairs, and the factor on cosines and sines.
///
/// Source: the scaling rules as `transformers` has them: Llama 3.1's ramp by
/// wavelength, YaRN (arXiv 2309.00071) by rotations.
fn frequencies(theta: f64, rotary: u64, scaling: Option<&RopeScaling>) -> (Vec<f32>, f64) {
    let base = |pair: u64| theta.powf(-2.0 * pair as f64 / rotary as f64);
    let pairs = rotary / 2;
    let tau = std::f64::consts::TAU;
    let mut attention = 1.0;
    let scaled = |pair: u64| -> f64 {
        let f = base(pair);
        match scaling {
            None | Some(RopeScaling::Dynamic { .. }) => f,
            Some(RopeScaling::Linear { factor }) => f / factor,
            Some(RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_context,
            }) => {
                let context = *original_context as f64;
                let wavelength = tau / f;
                if wavelength < context / high_freq_factor {
                    f
                } else if wavelength > context / low_freq_factor {
                    f / factor
                } else {
                    let smooth = (context / wavelength - low_freq_factor)
                        / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * f / factor + smooth * f
                }
            }
            Some(RopeScaling::Yarn {
                factor,
                beta_fast,
                beta_slow,
                original_context,
                ..
            }) => {
                let context = *original_context as f64;
                let at = |rotations: f64| {
                    rotary as f64 * (context / (rotations * tau)).ln() / (2.0 * theta.ln())
                };
                let low = at(*beta_fast).floor().max(0.0);
                let high = at(*beta_slow).ceil().min(rotary as f64 - 1.0);
                let span = if high == low { 0.001 } else { high - low };
                let ramp = ((pair as f64 - low) / span).clamp(0.0, 1.0);
                f / factor * ramp + f * (1.0 - ramp)
            }
        }
    };
    if let Some(RopeScaling::Yarn {
        attention_factor, ..
    }) = scaling
    {
        attention = *attention_factor;
    }
    (
        (0..pairs).map(|pair| scaled(pair) as f32).collect(),
        attention,
    )
}
