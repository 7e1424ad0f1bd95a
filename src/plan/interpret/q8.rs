//! Activations in 8 bits: 32 along `in` share a scale, absmax / 127.

/// Values that share a scale.
pub(super) const BLOCK: usize = 32;

/// A row of activations in 8 bits.
pub(super) struct Row {
    /// Codes, zeros behind the last.
    pub(super) codes: Vec<i32>,
    /// A scale per 32.
    pub(super) scales: Vec<f32>,
    /// Sum of the codes of each 32.
    pub(super) sums: Vec<i32>,
}

impl Row {
    /// Where a code stands among the bytes that kernels pass to one another: in each 64, byte
    /// `16 t + 4 i + b` is code `16 i + 4 t + b`.
    fn lane(k: usize) -> usize {
        k / 64 * 64 + k % 16 / 4 * 16 + k % 64 / 16 * 4 + k % 4
    }

    /// The codes as bytes, in that order.
    pub(super) fn in_lanes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.codes.len()];
        for (k, &code) in self.codes.iter().enumerate() {
            bytes[Self::lane(k)] = (code as i8).to_le_bytes()[0];
        }
        bytes
    }

    /// A row out of such bytes; its numbers of codes, scales and sums fit together.
    pub(super) fn from_lanes(bytes: &[u8], scales: &[f32], sums: &[i32]) -> Self {
        let code = |k: usize| i32::from(i8::from_le_bytes([bytes[Self::lane(k)]]));
        Self {
            codes: (0..bytes.len()).map(code).collect(),
            scales: scales.to_vec(),
            sums: sums.to_vec(),
        }
    }
}

/// Rounds a row, to nearest even.
pub(super) fn round(x: &[f32]) -> Row {
    let mut row = Row {
        codes: Vec::with_capacity(x.len().next_multiple_of(64)),
        scales: Vec::new(),
        sums: Vec::new(),
    };
    for block in x.chunks(BLOCK) {
        let largest = block.iter().fold(0f32, |most, x| match x.is_nan() {
            true => f32::NAN,
            false => most.max(x.abs()),
        });
        if largest < 1e-30 {
            row.codes.resize(row.codes.len() + BLOCK, 0);
            row.scales.push(0.0);
            row.sums.push(0);
            continue;
        }
        let inverse = 127.0 / largest;
        let start = row.codes.len();
        row.codes
            .extend(block.iter().map(|x| (x * inverse).round_ties_even() as i32));
        row.codes.resize(start + BLOCK, 0);
        row.scales.push(largest / 127.0);
        row.sums.push(row.codes[start..].iter().sum());
    }
    let padded = row.codes.len().next_multiple_of(64);
    row.codes.resize(padded, 0);
    row.scales.resize(padded / BLOCK, 0.0);
    row.sums.resize(padded / BLOCK, 0);
    row
}
