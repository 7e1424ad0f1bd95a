//! From codes back to weights.

use super::{Group, QuantMatrix, packed_len, unpack_row};
use std::ops::Range;

impl QuantMatrix {
    /// Writes rows `rows` as `f32` into `out` `[rows.len(), cols]`.
    ///
    /// # Panics
    /// If `rows` lies outside or `out` has another length.
    pub fn decode_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        self.each_row(rows, out, |o, w| *o = w);
    }

    /// Adds rows `rows` to `out` `[rows.len(), cols]`; panics as [`Self::decode_rows`].
    pub fn add_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        self.each_row(rows, out, |o, w| *o += w);
    }

    /// Subtracts rows `rows` from `out` `[rows.len(), cols]`; panics likewise.
    pub fn subtract_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        self.each_row(rows, out, |o, w| *o -= w);
    }

    /// The whole matrix as `f32`.
    pub fn decode(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.cols];
        self.decode_rows(0..self.rows, &mut out);
        out
    }

    /// The code of weight `[r, c]`, which must lie inside.
    pub fn code(&self, r: usize, c: usize) -> u8 {
        assert!(
            r < self.rows && c < self.cols,
            "[{r}, {c}] of {}x{}",
            self.rows,
            self.cols
        );
        let row_bytes = self.row_bytes();
        field(
            self.scheme.bits,
            &self.codes[r * row_bytes..][..row_bytes],
            c,
        )
    }

    /// The index of weight `[r, c]`'s scale in `scales`.
    pub fn scale_index(&self, r: usize, c: usize) -> usize {
        match self.group.width(self.cols) {
            Some(width) => r * self.group.per_row(self.cols) + c / width.max(1),
            None => c,
        }
    }

    /// The zero point of weight `[r, c]`.
    pub fn zero(&self, r: usize, c: usize) -> u8 {
        let Some(zeros) = &self.zeros else {
            return self.scheme.midpoint();
        };
        let per_row = self.group.per_row(self.cols);
        let bytes = packed_len(self.scheme.bits, per_row);
        match self.group.width(self.cols) {
            Some(width) => field(
                self.scheme.bits,
                &zeros[r * bytes..][..bytes],
                c / width.max(1),
            ),
            None => field(self.scheme.bits, zeros, c),
        }
    }

    /// All zero points, unpacked: `[rows, groups]`, or `[cols]` for column groups.
    ///
    /// `None` if the scheme is symmetric.
    pub fn unpacked_zeros(&self) -> Option<Vec<u8>> {
        let zeros = self.zeros.as_ref()?;
        let per_row = self.group.per_row(self.cols);
        let mut out = vec![0; self.group.count(self.rows, self.cols)];
        let bytes = packed_len(self.scheme.bits, per_row);
        if per_row > 0 {
            for (out, packed) in out.chunks_mut(per_row).zip(zeros.chunks(bytes)) {
                unpack_row(self.scheme.bits, packed, out);
            }
        }
        Some(out)
    }

    /// Unpacks the codes of row `r` into `out` `[cols]`.
    pub fn unpack_codes(&self, r: usize, out: &mut [u8]) {
        let row_bytes = self.row_bytes();
        unpack_row(
            self.scheme.bits,
            &self.codes[r * row_bytes..][..row_bytes],
            out,
        );
    }

    fn each_row(&self, rows: Range<usize>, out: &mut [f32], put: impl Fn(&mut f32, f32) + Copy) {
        assert!(
            rows.start <= rows.end && rows.end <= self.rows,
            "rows {rows:?} of {}",
            self.rows
        );
        assert_eq!(out.len(), rows.len() * self.cols, "length of the output");
        if self.cols == 0 {
            return;
        }
        let zeros = self.unpacked_zeros();
        let midpoint = self.scheme.midpoint();
        let width = self.group.width(self.cols).unwrap_or(1).max(1);
        let per_row = self.group.per_row(self.cols);
        let mut codes = vec![0u8; self.cols];
        for (r, out) in rows.zip(out.chunks_mut(self.cols)) {
            self.unpack_codes(r, &mut codes);
            let first = if self.group == Group::Column {
                0
            } else {
                r * per_row
            };
            let scales = &self.scales[first..][..per_row];
            let zeros = zeros.as_ref().map(|zeros| &zeros[first..][..per_row]);
            for (g, (out, codes)) in out.chunks_mut(width).zip(codes.chunks(width)).enumerate() {
                let zero = i32::from(zeros.map_or(midpoint, |zeros| zeros[g]));
                let scale = scales[g].to_f32();
                for (o, &q) in out.iter_mut().zip(codes) {
                    put(o, (i32::from(q) - zero) as f32 * scale);
                }
            }
        }
    }
}

/// Field `index` of a little-endian bit stream.
fn field(bits: u8, packed: &[u8], index: usize) -> u8 {
    let at = index * usize::from(bits);
    let low = u16::from(packed[at / 8]);
    let high = u16::from(packed.get(at / 8 + 1).copied().unwrap_or(0));
    ((low | high << 8) >> (at % 8)) as u8 & ((1u16 << bits) - 1) as u8
}
