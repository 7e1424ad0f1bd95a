//! Sizes and numbers that stand for those that inputs leave open.

/// Number of probes.
pub(super) const PROBES: usize = 2;

/// A size at each probe.
pub(super) type Size = [usize; PROBES];

/// What stands for the named sizes of inputs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub(super) batch: usize,
    pub(super) length: usize,
    pub(super) past: usize,
}

/// What stands for them at every probe.
pub(super) type Samples = [Sample; PROBES];

/// Batches of two and three, by the lengths and the pasts.
const fn samples(lengths: Size, pasts: Size) -> Samples {
    let [a, b] = lengths;
    let [p, q] = pasts;
    [
        Sample {
            batch: 2,
            length: a,
            past: p,
        },
        Sample {
            batch: 3,
            length: b,
            past: q,
        },
    ]
}

/// Short: what is raised is read from these.
pub(super) const NEAR: Samples = samples([7, 11], [3, 4]);

/// Longer ones that must show the same, the longest first: models may have tables that end before.
pub(super) const FAR: [Samples; 5] = [
    samples([109, 131], [37, 53]),
    samples([53, 61], [23, 29]),
    samples([37, 31], [13, 17]),
    samples([19, 23], [7, 9]),
    samples([13, 12], [4, 6]),
];

/// Whether an input of integers is none of those that a sequence's sizes tell: token ids.
pub(super) fn is_tokens(name: &str) -> bool {
    let told = ["mask", "position", "type", "segment"];
    !told.iter().any(|part| name.contains(part))
}

/// Whether an input is keys or values of earlier calls.
pub(super) fn is_past(name: &str) -> bool {
    name.contains("past") && !name.contains("length") && !name.contains("len")
}

impl Sample {
    /// The size of a dimension that the model leaves open.
    pub(super) fn size(&self, input: &str, axis: usize, rank: usize, cached: bool) -> usize {
        let mask = input.contains("mask");
        match (rank, axis) {
            (0 | 1, _) => self.batch,
            (_, 0) => self.batch,
            (2, _) if mask && cached => self.past + self.length,
            (4, 2) if is_past(input) => self.past,
            (4, 1) if is_past(input) => self.past,
            _ => self.length,
        }
    }

    /// Numbers of an integer input: positions unlike the default ones and masks with zeros, unless
    /// sequences are whole.
    pub(super) fn numbers(
        &self,
        input: &str,
        probe: Option<usize>,
        past: usize,
        (total, shape): (usize, &[usize]),
    ) -> Vec<f64> {
        let width = shape.last().copied().unwrap_or(1).max(1);
        let number = |at: usize| {
            let (row, col) = (at / width, at % width);
            let value = if input.contains("mask") {
                // Holes at one probe, padding on the right at the other.
                match probe {
                    None => 1,
                    Some(0) => usize::from((col * 3 + row) % 4 != 2),
                    Some(_) => usize::from(col + row + 1 < width),
                }
            } else if input.contains("position") {
                match probe {
                    None => past + col,
                    Some(_) => self.past + col + 2 * row + 1,
                }
            } else if input.contains("type") || input.contains("segment") {
                (row + col) % 2
            } else {
                (row * 5 + col * 3) % 7 + 1
            };
            value as f64
        };
        (0..total).map(number).collect()
    }
}
