//! Descriptions of GPUs: what a plan may use, and how fast it may be expected to be.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::PlanError;

/// A GPU architecture, or a card of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// `sm_89`
    pub arch: String,
    /// Card that the figures are of.
    pub card: String,
    /// Multiprocessors.
    pub sms: u32,
    /// Most shared memory that a block may ask for, bytes.
    pub shared_bytes: u32,
    /// Most threads of a block.
    pub block_threads: u32,
    /// Level-2 cache, bytes.
    pub l2_bytes: u64,
    /// Memory of the card, bytes.
    pub memory_bytes: u64,
    /// Memory bandwidth by the data sheet, GB/s.
    pub bandwidth_gbps: f64,
    /// Boost clock, MHz.
    pub clock_mhz: f64,
    /// Tensor-core rate of f16 with f32 sums, dense, TFLOP/s.
    pub f16_tflops: f64,
    /// Tensor-core rate of int8, dense, TOP/s.
    pub int8_tops: f64,
    /// Microseconds from one launch of a graph to the next.
    pub launch_us: f64,
    /// Bytes of main memory that the host reads, GB/s.
    pub host_gbps: f64,
    /// Other cards of the architecture.
    #[serde(default)]
    pub cards: Vec<Card>,
}

/// A card of an architecture, for estimates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Card {
    /// Its name.
    pub card: String,
    /// Multiprocessors.
    pub sms: u32,
    /// Memory, bytes.
    pub memory_bytes: u64,
    /// Memory bandwidth, GB/s.
    pub bandwidth_gbps: f64,
}

/// Targets that are part of the program.
const SHIPPED: [(&str, &str); 5] = [
    ("sm_80", include_str!("../../kernels/targets/sm_80.json")),
    ("sm_86", include_str!("../../kernels/targets/sm_86.json")),
    ("sm_89", include_str!("../../kernels/targets/sm_89.json")),
    ("sm_90", include_str!("../../kernels/targets/sm_90.json")),
    ("sm_120", include_str!("../../kernels/targets/sm_120.json")),
];

impl Target {
    /// The target called `name`, or that a `.json` file describes.
    ///
    /// # Errors
    /// There is no such target, or the file can't be read or says something that cannot be.
    pub fn named(name: &str) -> Result<Self, PlanError> {
        if let Some((_, text)) = SHIPPED.iter().find(|(n, _)| *n == name) {
            return Self::parse(name, text);
        }
        if !name.ends_with(".json") {
            let names: Vec<&str> = SHIPPED.iter().map(|(n, _)| *n).collect();
            return Err(PlanError::Format {
                place: format!("target `{name}`"),
                problem: format!(
                    "is not known; there are {}, or a .json file that describes one",
                    names.join(", ")
                ),
            });
        }
        let path = Path::new(name);
        let text = std::fs::read_to_string(path).map_err(|source| PlanError::Io {
            path: path.to_path_buf(),
            source,
        })?;
        Self::parse(name, &text)
    }

    /// Every shipped target.
    pub fn shipped() -> impl Iterator<Item = Result<Self, PlanError>> {
        SHIPPED.iter().map(|(name, text)| Self::parse(name, text))
    }

    fn parse(place: &str, text: &str) -> Result<Self, PlanError> {
        let fault = |problem: String| PlanError::Format {
            place: place.to_string(),
            problem,
        };
        let target: Self = serde_json::from_str(text).map_err(|e| fault(e.to_string()))?;
        target.check().map_err(fault)?;
        Ok(target)
    }

    /// Refuses figures that no card has.
    pub(super) fn check(&self) -> Result<(), String> {
        let positive = |x: f64| x.is_finite() && x > 0.0;
        let rates = [
            ("bandwidth_gbps", self.bandwidth_gbps),
            ("clock_mhz", self.clock_mhz),
            ("f16_tflops", self.f16_tflops),
            ("int8_tops", self.int8_tops),
            ("launch_us", self.launch_us),
            ("host_gbps", self.host_gbps),
        ];
        if let Some((name, value)) = rates.iter().find(|(_, x)| !positive(*x)) {
            return Err(format!("{name} is {value}, which is no positive number"));
        }
        let counts = [
            ("sms", u64::from(self.sms)),
            ("shared_bytes", u64::from(self.shared_bytes)),
            ("block_threads", u64::from(self.block_threads)),
            ("memory_bytes", self.memory_bytes),
        ];
        if let Some((name, _)) = counts.iter().find(|(_, n)| *n == 0) {
            return Err(format!("{name} is 0"));
        }
        let number = self.arch.strip_prefix("sm_").unwrap_or_default();
        if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
            return Err(format!("arch is `{}`, expected as sm_89", self.arch));
        }
        Ok(())
    }
}
