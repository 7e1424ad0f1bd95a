//! 16 values for each row, chosen by k-means, and a 4-bit code for each entry.
//!
//! Before: `linear %x { dense(@w) }`
//! After:  `linear %x { kmeans4.codebook(codes=@w.codes, values=@w.values) }`
//!
//! A term of this plugin's own kind. It is exported to ONNX as GatherElements, and multiplied by a kernel that
//! sums activations by code.
//!
//! Cost: `rounds` readings of each row. Half a byte per entry and 32 bytes per row.
//! Source: S. Lloyd, "Least squares quantization in PCM", 1982, on one row at a time.

use half::f16;
use hlrc_pass::prelude::*;
use hlrc_pass::serde_json::Map;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::codebook::{ENTRIES, NAME};

/// Options of `kmeans4`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Kmeans4 {
    /// Most rounds of moving values and choosing codes.
    #[schemars(range(min = 1, max = 100))]
    pub rounds: u32,
}

impl Default for Kmeans4 {
    fn default() -> Self {
        Self { rounds: 10 }
    }
}

impl MatrixPass for Kmeans4 {
    fn access(&self) -> Access {
        Access::Rows
    }

    fn residual(&self) -> Residual {
        Residual::Drop
    }

    fn quantizes(&self) -> bool {
        true
    }

    fn workspace_bytes(&self, rows: u64, cols: u64) -> u64 {
        self.term_bytes(rows, cols)
            .saturating_add(cols.saturating_mul(8))
    }

    fn nanos(&self, rows: u64, cols: u64) -> f64 {
        rows as f64 * cols as f64 * f64::from(self.rounds) * 15.0
    }

    fn term_bytes(&self, rows: u64, cols: u64) -> u64 {
        rows.saturating_mul(cols.div_ceil(2).saturating_add(2 * ENTRIES as u64))
    }

    fn peel(&self, peel: &mut Peel<'_>) -> Result<Peeled, PassError> {
        let (rows, cols) = (peel.rows, peel.cols);
        let mut codes = Vec::with_capacity(rows * cols.div_ceil(2));
        let mut values = Vec::with_capacity(rows * ENTRIES * 2);
        for row in peel.residual.chunks_mut(cols.max(1)) {
            if hlrc_pass::host::cancelled() {
                return Err(PassError::new("stopped"));
            }
            let book = cluster(row, self.rounds);
            let chosen: Vec<u8> = row.iter().map(|&x| nearest(&book, x) as u8).collect();
            for (x, &code) in row.iter_mut().zip(&chosen) {
                *x -= book[usize::from(code)];
            }
            codes.extend(
                chosen
                    .chunks(2)
                    .map(|pair| pair[0] | pair.get(1).unwrap_or(&0) << 4),
            );
            values.extend(book.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()));
        }
        let tensor = |name: &str, dtype, cols: usize, bytes| CustomTensor {
            name: name.to_string(),
            dtype,
            shape: vec![rows as u64, cols as u64],
            bytes,
        };
        let term = CustomData {
            kind: NAME.to_string(),
            rows,
            cols,
            attrs: Map::new(),
            tensors: vec![
                tensor("codes", DType::U8, cols.div_ceil(2), codes),
                tensor("values", DType::F16, ENTRIES, values),
            ],
        };
        Ok(Peeled {
            note: "kmeans4".to_string(),
            term: Some(TermData::Custom(term)),
        })
    }
}

/// 16 values for a row, ascending, as f16 has them: evenly spread quantiles, moved to the means of what is
/// nearest to each until nothing moves.
fn cluster(row: &[f32], rounds: u32) -> [f32; ENTRIES] {
    let mut sorted = row.to_vec();
    sorted.sort_by(f32::total_cmp);
    let at = |i: usize| (2 * i + 1) * sorted.len() / (2 * ENTRIES);
    let mut book: [f32; ENTRIES] =
        std::array::from_fn(|i| sorted.get(at(i)).copied().unwrap_or(0.0));
    for _ in 0..rounds {
        let (mut sums, mut counts) = ([0f64; ENTRIES], [0u32; ENTRIES]);
        for &x in row {
            let code = nearest(&book, x);
            sums[code] += f64::from(x);
            counts[code] += 1;
        }
        let before = book;
        for (value, (sum, count)) in book.iter_mut().zip(sums.into_iter().zip(counts)) {
            if count > 0 {
                *value = (sum / f64::from(count)) as f32;
            }
        }
        book.sort_by(f32::total_cmp);
        if book == before {
            break;
        }
    }
    book.map(|x| f16::from_f32(x).to_f32())
}

/// The value nearest to `x` of an ascending list.
fn nearest(book: &[f32; ENTRIES], x: f32) -> usize {
    let above = book.partition_point(|&value| value < x).min(ENTRIES - 1);
    let below = above.saturating_sub(1);
    if x - book[below] <= book[above] - x {
        below
    } else {
        above
    }
}

pass_entry!("kmeans4" in "kmeans4.rs", Kmeans4, |options: Kmeans4| Ok(Pass::Matrix(Box::new(options))));
