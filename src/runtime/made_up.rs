//! Bytes in the place of weights that a plan of a configuration does not have: launches take as long with them.

use super::RuntimeError;
use crate::plan::{PackedWeight, Section};

/// Sections that say where others lie.
const TABLES: [&str; 5] = ["v_tiles", "v_index", "u_tiles", "u_index", "s_offsets"];

/// Bytes that are small positive numbers as f16 and f32 and any codes as integers, always the same.
pub(super) fn pattern(bytes: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut next = || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        let [.., byte] = state.to_le_bytes();
        0x20 + byte % 0x1c
    };
    (0..bytes).map(|_| next()).collect()
}

/// The bytes of a section that can't be any; `None` for one that can.
///
/// # Errors
/// Launches find factors or entries by a table that only the weights tell.
pub(super) fn table(
    weight: &PackedWeight,
    section: &Section,
) -> Result<Option<Vec<u8>>, RuntimeError> {
    if TABLES.contains(&section.name.as_str()) {
        let problem = format!(
            "`{}` has low-rank or sparse terms, whose places a plan of a configuration does not tell; use the model itself",
            weight.name
        );
        return Err(RuntimeError::Unfit(problem));
    }
    let trellis = weight.pack == "tile16x16" && section.name == "zeros";
    Ok(trellis.then(|| columns(weight)))
}

/// A trellis's table of columns, its bits spread evenly.
fn columns(weight: &PackedWeight) -> Vec<u8> {
    let blocks = weight.cols.div_ceil(16).max(1);
    let codes = weight.section("q").map_or(0, |q| q.bytes);
    let sum = codes / (weight.rows / 16).max(1) / 32;
    let until = |block: u64| sum * block / blocks;
    let widest = sum.div_ceil(blocks);
    let mut table = Vec::new();
    for unit in 0..weight.cols.div_ceil(256) {
        let mut bits = [0u64; 2];
        for block in 16 * unit..(16 * unit + 16).min(blocks) {
            let at = block % 16;
            bits[(at / 8) as usize] |= (until(block + 1) - until(block)) << (4 * (at % 8));
        }
        let words = [until(16 * unit), bits[0], bits[1], widest | sum << 8];
        table.extend(words.iter().flat_map(|&w| (w as u32).to_le_bytes()));
    }
    table
}
