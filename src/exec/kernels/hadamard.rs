//! Rotations of activations.
use crate::exec::Pool;
use crate::numeric::hadamard::Rotation;

/// Rotates rows.
pub fn rotate(pool: &Pool, side: &Rotation, x: &mut [f32], cols: usize) {
    pool.split(x, cols, (1, cols), |mut tile| {
        let t = tile.rows().start;
        side.rotate_rows(tile.row_mut(t), cols);
    });
}
/// Takes it back.
pub fn unrotate(pool: &Pool, side: &Rotation, x: &mut [f32], cols: usize) {
    pool.split(x, cols, (1, cols), |mut tile| {
        let t = tile.rows().start;
        side.unrotate_rows(tile.row_mut(t), cols);
    });
}
