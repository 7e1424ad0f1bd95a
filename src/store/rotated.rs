//! Weights that are turned when they are read.

use super::reader::{in_memory, synthetic_shape};
use super::{Located, Reader, StoreError, synthetic};
use crate::ir::{Gain, Module, Rotated, Storage, Turn, Weight, WeightId};
use crate::numeric::hadamard::Rotation;
use crate::weights::DType;
use crate::weights::read::{decode_f32, encode_f32};

/// The coordinates of a turned matrix's inputs: what turns them, and the gain that they are divided by.
pub type Coordinates = (Option<Turn>, Option<Vec<f32>>);

impl Reader<'_> {
    /// A weight that is turned when it is read, in memory. Memory: the matrix in f32 beside its bytes.
    pub(super) fn turned(
        &self,
        module: &Module,
        weight: &Weight,
        recipe: &Rotated,
    ) -> Result<Located, StoreError> {
        let part = |index: usize, dtype| {
            let part = recipe.parts.get(index);
            let part = part.ok_or_else(|| StoreError::Absent(weight.name.clone()))?;
            self.part(module, weight, part, dtype)
        };
        let tensor = part(0, recipe.dtype)?;
        let gain = recipe.gain.map(|gain| part(1, gain.dtype)).transpose()?;
        let fault = |source| StoreError::Weights {
            weight: weight.name.clone(),
            source,
        };
        let gains = gain.as_ref().map(Located::bytes).transpose();
        let parts = (tensor.bytes().map_err(fault)?, gains.map_err(fault)?);
        let bytes = bytes(recipe, parts, weight.dtype, weight.sides());
        for part in std::iter::once(&tensor).chain(&gain) {
            part.source.release(part.offset, part.len);
        }
        let bytes = bytes.ok_or_else(|| StoreError::Damaged {
            weight: weight.name.clone(),
            problem: "what it is turned from has another size or type".to_string(),
        })?;
        Ok(in_memory(bytes))
    }

    /// What a turned weight is made from: part of a file, bytes, or a random matrix of its shape.
    fn part(
        &self,
        module: &Module,
        weight: &Weight,
        storage: &Storage,
        dtype: DType,
    ) -> Result<Located, StoreError> {
        match storage {
            Storage::Synthetic(recipe) => {
                let (rows, cols) = synthetic_shape(weight)?;
                Ok(in_memory(synthetic::bytes(recipe, dtype, rows, cols)))
            }
            piece => self.piece(module, weight, piece),
        }
    }

    /// The coordinates of a matrix's inputs where its weight is turned when it is read; `transposed`: it is
    /// stored as `[in, out]`.
    ///
    /// # Errors
    /// As [`Self::locate`].
    pub fn coordinates(
        &self,
        module: &Module,
        id: WeightId,
        transposed: bool,
    ) -> Result<Option<Coordinates>, StoreError> {
        let weight = self.weight(module, id)?;
        let Storage::Rotated(recipe) = &weight.storage else {
            return Ok(None);
        };
        let turn = if transposed {
            recipe.rows
        } else {
            recipe.columns
        };
        let Some((gain, part)) = recipe.gain.zip(recipe.parts.get(1)) else {
            return Ok(Some((turn, None)));
        };
        let located = self.part(module, weight, part, gain.dtype)?;
        let bytes = located.bytes().map_err(|source| StoreError::Weights {
            weight: weight.name.clone(),
            source,
        })?;
        let (rows, cols) = weight.sides();
        let values = factors(&gain, bytes, if gain.along_rows { rows } else { cols });
        let values = values.ok_or_else(|| StoreError::Damaged {
            weight: weight.name.clone(),
            problem: "its gain has another size or type".to_string(),
        })?;
        Ok(Some((turn, Some(values))))
    }
}

/// `n` values of a float type as f32; `None` where the bytes are of another number.
fn decoded(dtype: DType, bytes: &[u8], n: u64) -> Option<Vec<f32>> {
    // Sizes before memory: the shape may be anyone's.
    if dtype.bytes_for(n) != Some(bytes.len() as u64) {
        return None;
    }
    let mut values = vec![0f32; usize::try_from(n).ok()?];
    decode_f32(dtype, bytes, &mut values).then_some(values)
}

fn factors(gain: &Gain, bytes: &[u8], n: u64) -> Option<Vec<f32>> {
    let mut values = decoded(gain.dtype, bytes, n)?;
    if gain.unit_offset {
        values.iter_mut().for_each(|g| *g += 1.0);
    }
    Some(values)
}

/// The matrix `[rows, cols]` of the recipe as bytes of `dtype`, from those of its tensor and gain.
/// `None` where they do not fit.
fn bytes(
    recipe: &Rotated,
    (tensor, gain): (&[u8], Option<&[u8]>),
    dtype: DType,
    (rows, cols): (u64, u64),
) -> Option<Vec<u8>> {
    let mut values = decoded(recipe.dtype, tensor, rows.checked_mul(cols)?)?;
    let (rows, cols) = (usize::try_from(rows).ok()?, usize::try_from(cols).ok()?);
    if let Some(gains) = &recipe.gain {
        let count = if gains.along_rows { rows } else { cols };
        let factors = factors(gains, gain?, count as u64)?;
        for (row, x) in values.chunks_exact_mut(cols.max(1)).enumerate() {
            match gains.along_rows {
                true => x.iter_mut().for_each(|x| *x *= factors[row]),
                false => x.iter_mut().zip(&factors).for_each(|(x, g)| *x *= g),
            }
        }
    }
    if let Some(turn) = &recipe.columns {
        let rotation = rotation(turn)?;
        rotation.rotate_rows_with(&mut values, cols, &signs(turn, cols)?);
    }
    if let Some(turn) = &recipe.rows {
        let rotation = rotation(turn)?;
        rotation.rotate_cols_with(&mut values, cols, &signs(turn, rows)?);
    }
    encode_f32(dtype, &values)
}

/// Second moments `[n, n]` of a matrix's inputs, or their diagonal, in the coordinates of the turned
/// matrix: inputs are divided by the gain, which the matrix has taken up, and turned.
///
/// An input whose gain is 0 was always 0 and counts as that. Of a diagonal alone the entries of a block
/// become their mean, as the blocks' signs make them on average.
pub fn turned_moments(
    turn: Option<&Turn>,
    gain: Option<&[f32]>,
    hessian: Option<&mut [f32]>,
    diagonal: &mut [f32],
) {
    let n = diagonal.len();
    let share = |i: usize| match gain.and_then(|gain| gain.get(i)) {
        Some(&g) if g != 0.0 => g.recip(),
        Some(_) => 0.0,
        None => 1.0,
    };
    let turn = turn.and_then(|turn| Some((rotation(turn)?, signs(turn, n)?)));
    if let Some(h) = hessian {
        for (row, h) in h.chunks_exact_mut(n.max(1)).enumerate() {
            h.iter_mut()
                .enumerate()
                .for_each(|(col, h)| *h *= share(row) * share(col));
        }
        if let Some((rotation, signs)) = &turn {
            rotation.rotate_rows_with(h, n, signs);
            rotation.rotate_cols_with(h, n, signs);
        }
        (0..n).for_each(|i| diagonal[i] = h[i * n + i].max(0.0));
        return;
    }
    diagonal
        .iter_mut()
        .enumerate()
        .for_each(|(i, d)| *d *= share(i) * share(i));
    if let Some((rotation, _)) = turn {
        for block in diagonal.chunks_mut(rotation.block.max(1)) {
            let sum: f64 = block.iter().map(|&d| f64::from(d)).sum();
            let mean = (sum / block.len() as f64) as f32;
            block.fill(mean);
        }
    }
}

fn rotation(turn: &Turn) -> Option<Rotation> {
    Some(Rotation {
        block: usize::try_from(turn.block).ok()?,
        seed: turn.seed,
    })
}

/// The signs of `n` entries, anew for each head where they repeat.
fn signs(turn: &Turn, n: usize) -> Option<Vec<f32>> {
    let period = match turn.repeat {
        None => n,
        Some(period) => usize::try_from(period).ok()?,
    };
    let once = rotation(turn)?.signs(period.min(n));
    Some(once.iter().copied().cycle().take(n).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(n: usize) -> Vec<f32> {
        let value = |i: usize| ((i * 37 % 101) as f32 - 50.0) / 7.0;
        (0..n).map(value).collect()
    }

    fn turn(block: u64, repeat: Option<u64>) -> Option<Turn> {
        let seed = 9;
        Some(Turn {
            block,
            seed,
            repeat,
        })
    }

    fn turned(recipe: &Rotated, values: &[f32], gain: &[f32], sides: (usize, usize)) -> Vec<f32> {
        let raw = |x: &[f32]| x.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let sides = (sides.0 as u64, sides.1 as u64);
        let parts = (raw(values), raw(gain));
        let bytes = bytes(recipe, (&parts.0, Some(&parts.1)), DType::F32, sides).unwrap();
        let mut out = vec![0.0; values.len()];
        assert!(decode_f32(DType::F32, &bytes, &mut out));
        out
    }

    fn product(w: &[f32], x: &[f32]) -> Vec<f64> {
        let dot = |row: &[f32]| {
            let pairs = row.iter().zip(x);
            pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        w.chunks(x.len()).map(dot).collect()
    }

    #[test]
    fn a_turned_matrix_gives_the_turned_product() {
        let (rows, cols) = (24, 32);
        let (w, x, gain) = (
            ramp(rows * cols),
            ramp(cols),
            ramp(3 * cols)[cols..2 * cols].to_vec(),
        );
        let recipe = Rotated {
            parts: vec![Storage::Absent; 2],
            dtype: DType::F32,
            rows: turn(8, Some(8)),
            columns: turn(16, None),
            gain: Some(Gain {
                dtype: DType::F32,
                along_rows: false,
                unit_offset: true,
            }),
        };
        let made = turned(&recipe, &w, &gain, (rows, cols));
        let scaled: Vec<f32> = x.iter().zip(&gain).map(|(x, g)| x * (g + 1.0)).collect();
        let mut want: Vec<f32> = product(&w, &scaled).iter().map(|y| *y as f32).collect();
        let side = Rotation { block: 8, seed: 9 };
        want.chunks_mut(8)
            .for_each(|head| side.rotate_rows(head, 8));
        let mut x = x;
        Rotation { block: 16, seed: 9 }.rotate_rows(&mut x, cols);
        let got = product(&made, &x);
        for (got, want) in got.iter().zip(&want) {
            assert!((got - f64::from(*want)).abs() < 0.05, "{got} {want}");
        }

        // The same stored as [in, out].
        let stored: Vec<f32> = (0..rows * cols)
            .map(|at| w[at % rows * cols + at / rows])
            .collect();
        let other = Rotated {
            rows: recipe.columns,
            columns: recipe.rows,
            gain: recipe.gain.map(|gain| Gain {
                along_rows: true,
                ..gain
            }),
            ..recipe.clone()
        };
        let other = turned(&other, &stored, &gain, (cols, rows));
        for (r, row) in made.chunks(cols).enumerate() {
            for (c, a) in row.iter().enumerate() {
                assert!((a - other[c * rows + r]).abs() < 1e-2);
            }
        }
    }

    #[test]
    fn moments_turn_with_the_inputs() {
        let n = 16;
        let samples: Vec<Vec<f32>> = (0..40)
            .map(|k| ramp(n * (k + 1))[n * k..].to_vec())
            .collect();
        let gain: Vec<f32> = (0..n).map(|i| 0.5 + i as f32 / 8.0).collect();
        let sum = |of: &dyn Fn(&[f32]) -> Vec<f32>| {
            let mut h = vec![0f32; n * n];
            for x in &samples {
                let x = of(x);
                h.iter_mut()
                    .enumerate()
                    .for_each(|(at, h)| *h += x[at / n] * x[at % n]);
            }
            h
        };
        let mut h = sum(&|x| x.iter().zip(&gain).map(|(x, g)| x * g).collect());
        let side = turn(8, None);
        let want = sum(&|x| {
            let mut x = x.to_vec();
            Rotation { block: 8, seed: 9 }.rotate_rows(&mut x, n);
            x
        });
        let mut diagonal: Vec<f32> = (0..n).map(|i| h[i * n + i]).collect();
        let mut alone = diagonal.clone();
        turned_moments(side.as_ref(), Some(&gain), Some(&mut h), &mut diagonal);
        let scale = want.iter().fold(0f32, |m, x| m.max(x.abs()));
        assert!(
            h.iter()
                .zip(&want)
                .all(|(a, b)| (a - b).abs() < 1e-4 * scale)
        );
        assert!((0..n).all(|i| diagonal[i] == h[i * n + i]));
        turned_moments(side.as_ref(), Some(&gain), None, &mut alone);
        let (a, b): (f32, f32) = (alone.iter().sum(), diagonal.iter().sum());
        assert!((a - b).abs() < 1e-3 * b, "the sum over a block stays");
    }
}
