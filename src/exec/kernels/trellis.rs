//! Products with trellis codes: 64 rows at a time decode to a tile, which is multiplied.
use super::Write;
use crate::exec::Pool;
use crate::numeric::trellis::{decode_tile, tile_bytes};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
/// A trellis-coded matrix in mapped bytes, whose sizes were checked (`TrellisMatrix::check_parts`).
#[allow(missing_docs)]
pub struct TrellisRows<'a> {
    pub codes: &'a [u8],
    pub scales: &'a [u8],
    pub bits: &'a [u8],
    pub rows: usize,
    pub cols: usize,
    pub states_log2: u8,
}
impl TrellisRows<'_> {
    fn stripe(&self, s: usize, out: &mut [f32]) {
        let bytes = self.codes.len() / self.rows.div_ceil(16);
        let scale = half::f16::from_le_bytes([self.scales[2 * s], self.scales[2 * s + 1]]).to_f32();
        let mut tile = [0f32; 256];
        let mut at = s * bytes;
        for (b, &k) in self.bits.iter().enumerate() {
            let n = tile_bytes(k);
            decode_tile(&self.codes[at..at + n], k, self.states_log2, &mut tile);
            at += n;
            let w = 16.min(self.cols - b * 16);
            for (r, row) in out.chunks_exact_mut(self.cols).enumerate() {
                for i in 0..w {
                    row[b * 16 + i] = scale * tile[r * 16 + i];
                }
            }
        }
    }
}
/// `out [+]= x Wᵀ` for `x` `[tokens, cols]`.
pub fn matmul_exact(
    pool: &Pool,
    w: &TrellisRows<'_>,
    x: &[f32],
    tokens: usize,
    write: Write,
    out: &mut [f32],
) {
    pool.split(out, w.rows, (tokens, 64), |mut tile| {
        let cols = tile.cols();
        let n = cols.len();
        let mut dec = vec![0f32; n.div_ceil(16) * 16 * w.cols];
        for (i, s) in (cols.start / 16..cols.end.div_ceil(16)).enumerate() {
            let rows = 16.min(w.rows - s * 16);
            w.stripe(s, &mut dec[i * 16 * w.cols..][..rows * w.cols]);
        }
        let mut sums = vec![0f32; tokens * n];
        matmul(
            MatMut::from_row_major_slice_mut(&mut sums, tokens, n),
            Accum::Replace,
            MatRef::from_row_major_slice(x, tokens, w.cols),
            MatRef::from_row_major_slice(&dec[..n * w.cols], n, w.cols).transpose(),
            1.0,
            Par::Seq,
        );
        for t in 0..tokens {
            for (o, &s) in tile.row_mut(t).iter_mut().zip(&sums[t * n..(t + 1) * n]) {
                write.put(o, s);
            }
        }
    });
}
/// Row `row` of the matrix, `[cols]`.
pub fn decode_row(w: &TrellisRows<'_>, row: usize, out: &mut [f32]) {
    let s = row / 16;
    let rows = 16.min(w.rows - s * 16);
    let mut all = vec![0f32; rows * w.cols];
    w.stripe(s, &mut all);
    out.copy_from_slice(&all[(row % 16) * w.cols..][..w.cols]);
}
