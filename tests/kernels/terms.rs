//! Terms of a matrix as packed, and what they stand for.

use crate::data::{Random, f16_bits, from_f16};
use crate::embed::{by_tile, pack_codes, pack_floats};
use half::{bf16, f16};
use hlrc::numeric::trellis::TrellisMatrix;

/// A linear and how many tokens go through it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) format: usize,
    pub(crate) bits: usize,
    pub(crate) group: usize,
    pub(crate) zeros: bool,
    pub(crate) xscale: bool,
    /// Bits of the factors; 0: no low-rank term.
    pub(crate) factors: usize,
    pub(crate) sparse: bool,
    pub(crate) activation: usize,
    pub(crate) glu: bool,
    /// Bias, residual and cap.
    pub(crate) epilogue: bool,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) tokens: usize,
}

pub(crate) const PLAIN: Case = Case {
    format: 0,
    bits: 4,
    group: 64,
    zeros: false,
    xscale: false,
    factors: 0,
    sparse: false,
    activation: 0,
    glu: false,
    epilogue: false,
    rows: 64,
    cols: 128,
    tokens: 64,
};

/// The packed matrix, and what it stands for, `[rows, cols]`.
pub(crate) struct Base {
    pub(crate) q: Vec<u8>,
    pub(crate) scales: Vec<u16>,
    pub(crate) zeros: Vec<u8>,
    pub(crate) values: Vec<f64>,
}

/// Random tiles of every width of a trellis of 2^bits states, and what the library decodes them to.
fn trellis(case: &Case, random: &mut Random) -> Base {
    let (rows, cols) = (case.rows, case.cols);
    let widths: Vec<u8> = (0..cols.div_ceil(16))
        .map(|_| 1 + random.below(8) as u8)
        .collect();
    let stripe = TrellisMatrix::stripe_bytes(&widths);
    let matrix = TrellisMatrix {
        rows,
        cols,
        states_log2: case.bits as u8,
        codes: (0..stripe * rows.div_ceil(16))
            .map(|_| random.below(256) as u8)
            .collect(),
        scales: random
            .normals(rows.div_ceil(16), 0.1)
            .iter()
            .map(|s| f16::from_f32(*s))
            .collect(),
        bits: widths.clone(),
    };
    let values = matrix.decode().expect("parts that fit");
    let widest = widths.iter().copied().max().unwrap_or(0);
    let sum = |widths: &[u8]| widths.iter().map(|&k| u32::from(k)).sum::<u32>();
    let mut zeros = Vec::new();
    for (unit, some) in widths.chunks(16).enumerate() {
        let mut words = [0u32; 4];
        words[0] = sum(&widths[..unit * 16]);
        for (block, &k) in some.iter().enumerate() {
            words[1 + block / 8] |= u32::from(k) << (4 * (block % 8));
        }
        words[3] = u32::from(widest) | sum(&widths) << 8;
        zeros.extend(words.iter().flat_map(|w| w.to_le_bytes()));
    }
    Base {
        q: matrix.codes,
        scales: matrix.scales.iter().map(|s| s.to_bits()).collect(),
        zeros,
        values: values.iter().map(|v| f64::from(*v)).collect(),
    }
}

pub(crate) fn base(case: &Case, random: &mut Random) -> Base {
    let (rows, cols) = (case.rows, case.cols);
    let mut base = Base {
        q: vec![0; 16],
        scales: vec![0; 8],
        zeros: vec![0; 16],
        values: vec![0.0; rows * cols],
    };
    if case.format == 5 {
        return base;
    }
    if case.format == 4 {
        return trellis(case, random);
    }
    if case.format != 0 {
        let values = random.normals(rows * cols, 0.5);
        let size = if case.format == 3 { 4 } else { 2 };
        base.q = pack_floats(size, &values, rows, cols, |v| match case.format {
            1 => f16::from_f32(v).to_le_bytes().to_vec(),
            2 => bf16::from_f32(v).to_le_bytes().to_vec(),
            _ => v.to_le_bytes().to_vec(),
        });
        let stored = |v: &f32| match case.format {
            2 => bf16::from_f32(*v).to_f64(),
            // f32 weights meet f16 activations as f16.
            _ => f16::from_f32(*v).to_f64(),
        };
        base.values = values.iter().map(stored).collect();
        return base;
    }
    let groups = if case.group == 0 {
        1
    } else {
        cols.div_ceil(case.group)
    };
    let codes: Vec<u8> = (0..rows * cols)
        .map(|_| random.below(1 << case.bits) as u8)
        .collect();
    let scales = f16_bits(&random.normals(rows * groups, 0.1));
    let zero: Vec<u8> = (0..rows * groups)
        .map(|_| random.below(1 << case.bits) as u8)
        .collect();
    let value = |i: usize| {
        let group = (i % cols).checked_div(case.group).unwrap_or(0);
        let at = i / cols * groups + group;
        let middle = if case.zeros {
            f64::from(zero[at])
        } else {
            f64::from(1 << (case.bits - 1))
        };
        (f64::from(codes[i]) - middle) * from_f16(scales[at])
    };
    base.values = (0..rows * cols).map(value).collect();
    base.q = pack_codes(case.bits, &codes, rows, cols);
    base.scales = by_tile(&scales, rows, groups, 0);
    let zeros = by_tile(&zero, rows, groups, 0);
    base.zeros = match case.bits {
        8 => zeros,
        _ => zeros.chunks(2).map(|z| z[0] | z[1] << 4).collect(),
    };
    base
}

/// Factors as packed: two blocks of V, each seen by some of the row tiles.
pub(crate) struct Factors {
    pub(crate) v: Vec<u8>,
    pub(crate) v_scales: Vec<u16>,
    pub(crate) v_tiles: Vec<u32>,
    pub(crate) u: Vec<u8>,
    pub(crate) u_scales: Vec<u16>,
    pub(crate) u_tiles: Vec<u32>,
    pub(crate) u_index: Vec<u32>,
    pub(crate) rank: usize,
    /// U V, `[rows, cols]`.
    pub(crate) product: Vec<f64>,
}

/// An entry of a factor: its packed code, and what it stands for before its scale.
fn entry(bits: usize, random: &mut Random) -> (i32, f64) {
    match bits {
        4 => {
            let code = random.below(16) as i32 - 8;
            (code, f64::from(code))
        }
        8 => {
            let code = random.below(255) as i32 - 127;
            (code, f64::from(code))
        }
        16 => {
            let h = f16::from_f32(random.normal(0.3));
            (i32::from(h.to_bits()), h.to_f64())
        }
        _ => {
            // Exact in f16, as which U is multiplied.
            let v = f16::from_f32(random.normal(0.3)).to_f32();
            (v.to_bits().cast_signed(), f64::from(v))
        }
    }
}

fn put(out: &mut [u8], at: usize, bits: usize, code: i32) {
    match bits {
        8 => out[at] = code as u8,
        16 => out[2 * at..2 * at + 2].copy_from_slice(&(code as u16).to_le_bytes()),
        _ => out[4 * at..4 * at + 4].copy_from_slice(&code.to_le_bytes()),
    }
}

pub(crate) fn factors(case: &Case, random: &mut Random) -> Factors {
    let bits = case.factors;
    let (rows, cols, tiles) = (case.rows, case.cols, case.rows.div_ceil(16));
    let mut f = Factors {
        v: Vec::new(),
        v_scales: Vec::new(),
        v_tiles: Vec::new(),
        u: Vec::new(),
        u_scales: Vec::new(),
        u_tiles: Vec::new(),
        u_index: vec![0],
        rank: 0,
        product: vec![0.0; rows * cols],
    };
    // (rank, first column, columns): ranks that are no multiple of 16, columns that start anywhere.
    let blocks = [(20usize, 0usize, cols), (5, cols / 2, cols - cols / 2)];
    let group = if bits == 4 { 32 } else { 64 };
    let mut inner: Vec<(usize, usize, usize, Vec<f64>)> = Vec::new();
    for (rank, col0, width) in blocks {
        let stride = (width * bits).div_ceil(8).next_multiple_of(16);
        let per_row = width.div_ceil(group);
        f.v_tiles.extend(
            [f.rank, rank, col0, width, f.v.len() / 16, f.v_scales.len()].map(|n| n as u32),
        );
        let start = f.v.len();
        f.v.resize(start + rank * stride, 0xff); // padding is not zero
        let scales = f16_bits(&random.normals(rank * per_row, 0.02));
        let mut values = vec![0.0; rank * width];
        for r in 0..rank {
            for k in 0..width {
                let (code, value) = entry(bits, random);
                let row = &mut f.v[start + r * stride..][..stride];
                if bits == 4 {
                    let nibble = ((code + 8) as u8) << (4 * (k % 2));
                    row[k / 2] = row[k / 2] & !(15 << (4 * (k % 2))) | nibble;
                } else {
                    put(row, k, bits, code);
                }
                let scale = if bits <= 8 {
                    from_f16(scales[r * per_row + k / group])
                } else {
                    1.0
                };
                values[r * width + k] = value * scale;
            }
        }
        f.v_scales.extend(scales);
        inner.push((f.rank, rank, col0, values));
        f.rank += rank.next_multiple_of(16);
    }
    f.v_scales.push(0);
    for tile in 0..tiles {
        for (b, (h0, rank, col0, values)) in inner.iter().enumerate() {
            if b == 1 && tile % 2 == 0 {
                continue; // not every tile sees the second block
            }
            let steps = rank.div_ceil(16);
            let first = f.u.len() / (bits * 32);
            f.u_tiles
                .extend([first, *h0, steps, f.u_scales.len()].map(|n| n as u32));
            let sets = if bits == 4 { steps.div_ceil(2) } else { 1 };
            let scales = f16_bits(&random.normals(16 * sets, 0.05));
            for step in 0..steps {
                let at = f.u.len();
                f.u.resize(at + bits * 32, 0);
                let packed = &mut f.u[at..];
                for lane in 0..32 {
                    for (half, b) in (0..2).flat_map(|half| (0..4).map(move |b| (half, b))) {
                        let (r, j) = (lane / 4 + 8 * half, 16 * step + 4 * (lane % 4) + b);
                        let row = tile * 16 + r;
                        let (code, value) = match j < *rank && row < rows {
                            true => entry(bits, random),
                            false => (0, 0.0),
                        };
                        match bits {
                            4 => packed[lane * 4 + b] |= ((code + 8) as u8) << (4 * half),
                            _ => put(packed, lane * 8 + half * 4 + b, bits, code),
                        }
                        if j >= *rank || row >= rows {
                            continue;
                        }
                        let set = if bits == 4 { step / 2 * 16 } else { 0 };
                        let scale = if bits <= 8 {
                            from_f16(scales[set + 2 * (r % 8) + r / 8])
                        } else {
                            1.0
                        };
                        let width = values.len() / rank;
                        for k in 0..width {
                            f.product[row * cols + col0 + k] +=
                                value * scale * values[j * width + k];
                        }
                    }
                }
            }
            f.u_scales.extend(scales);
        }
        f.u_index.push((f.u_tiles.len() / 4) as u32);
    }
    f
}

/// Sparse runs: offsets and words; entries are added to `values`.
pub(crate) fn sparse(case: &Case, values: &mut [f64], random: &mut Random) -> (Vec<u32>, Vec<u32>) {
    let (rows, cols) = (case.rows, case.cols);
    let (mut words, mut offsets) = (Vec::new(), Vec::new());
    for tile in 0..rows.div_ceil(16) {
        for chunk in 0..cols.div_ceil(4096) {
            offsets.push(words.len() as u32);
            let mut ends = [0u16; 16];
            let mut entries = Vec::new();
            for (r, end) in ends.iter_mut().enumerate() {
                let row = tile * 16 + r;
                for c in chunk * 4096..cols.min((chunk + 1) * 4096) {
                    // Some tiles have none.
                    if row < rows && tile % 3 != 2 && random.below(40) == 0 {
                        let value = f16::from_f32(random.normal(2.0));
                        values[row * cols + c] += value.to_f64();
                        entries.push(
                            u32::from(value.to_bits()) << 16 | (r as u32) << 12 | (c % 4096) as u32,
                        );
                    }
                }
                *end = entries.len() as u16;
            }
            if !entries.is_empty() {
                words.extend(
                    ends.chunks(2)
                        .map(|e| u32::from(e[0]) | u32::from(e[1]) << 16),
                );
                words.extend(entries);
            }
        }
    }
    offsets.push(words.len() as u32);
    words.resize(words.len() + 8, 0);
    (words, offsets)
}
