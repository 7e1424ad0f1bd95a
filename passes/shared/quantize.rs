//! The integer quantizer behind `int8`, `int4`, `int3` and `int2`.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use serde_json::Value;

use super::gptq::Gptq;
use super::metric::check_damp;
use crate::numeric::float::Float;
use crate::numeric::quant::{Quantized, Source, quantize, quantize_source, quantized_bytes};
use crate::numeric::{Group, ScaleMethod, Scheme};
use crate::pass::terms::TermData;
use crate::pass::{
    Access, MatrixPass, Pass, PassError, Peel, Peeled, PeeledStored, Place, Quantizer, Residual,
    Stored,
};

/// How scales are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ScaleOption {
    /// From the largest magnitude.
    Absmax,
    /// By least squared error.
    Lsq,
}

/// How codes are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MethodOption {
    /// Each weight by itself: round to nearest.
    Rtn,
    /// With error feedback in the metric of the activations; needs `--calib`.
    Gptq,
}

/// A group as pipelines write it: `32`, `64`, `128`, `row` or `column`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupOption(pub Group);

const SIZES: [u32; 3] = [32, 64, 128];

impl<'de> Deserialize<'de> for GroupOption {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(from)?;
        let group = match &value {
            Value::String(word) => word.parse().ok(),
            Value::Number(size) => {
                let known = |&n: &u32| size.as_u64() == Some(u64::from(n));
                SIZES.into_iter().find(known).map(Group::Size)
            }
            _ => None,
        };
        let expected =
            || D::Error::custom(format!("group={value}: use 32, 64, 128, row or column"));
        group.map(GroupOption).ok_or_else(expected)
    }
}

impl Serialize for GroupOption {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Group::Size(size) => to.serialize_u32(size),
            word => to.collect_str(&word),
        }
    }
}

impl JsonSchema for GroupOption {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Group".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [{ "enum": SIZES }, { "enum": ["row", "column"] }] })
    }
}

/// Options of a quantizer with codes of so many bits. Its pass's file says what the defaults are.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default, bound = "Options<BITS>: Default")]
#[schemars(rename = "Options", bound = "Options<BITS>: Default")]
pub struct Options<const BITS: u8> {
    /// Which weights share a scale: so many neighbours along the input side, a whole row (one
    /// output), or a whole column (one input).
    pub group: GroupOption,
    /// Whether groups have zero points of their own, as wide as a code; else zero is the middle
    /// code.
    pub asymmetric: bool,
    /// How scales are chosen: from the largest magnitude (`absmax`), or by least squared error
    /// (`lsq`), which takes about ten times as long.
    pub scale: ScaleOption,
    /// How codes are chosen: each by itself (`rtn`), or so that errors make up for each other on the
    /// inputs that were seen (`gptq`), which needs `--calib`.
    pub method: MethodOption,
    /// With `gptq`: damping of the second moments, as a fraction of their mean diagonal.
    pub damp: f64,
    /// With `gptq`: most rounds of fitting scales and codes to each other behind it.
    pub rounds: usize,
}

impl<const BITS: u8> Options<BITS>
where
    Self: Default,
{
    /// The pass.
    pub fn build(self) -> Result<Pass, PassError> {
        let quantizer = Quantizer {
            scheme: Scheme {
                bits: BITS,
                symmetric: !self.asymmetric,
            },
            group: self.group.0,
            method: match self.scale {
                ScaleOption::Absmax => ScaleMethod::AbsMax,
                ScaleOption::Lsq => ScaleMethod::Lsq,
            },
            feedback: self.method == MethodOption::Gptq,
        };
        check_damp(self.damp)?;
        if self.method == MethodOption::Rtn {
            let default = Self::default();
            let idle = [
                ("damp", self.damp != default.damp),
                ("rounds", self.rounds != default.rounds),
            ];
            if let Some((option, _)) = idle.iter().find(|(_, changed)| *changed) {
                let what = format!("{option} has no effect without method=gptq");
                return Err(PassError::new(what));
            }
            return Ok(Pass::Matrix(Box::new(Quantize(quantizer))));
        }
        if quantizer.group == Group::Column {
            return Err(PassError::new(
                "method=gptq takes columns one after the other: use a group along the rows",
            ));
        }
        Ok(Pass::Matrix(Box::new(Gptq {
            quantizer,
            damp: self.damp,
            rounds: self.rounds,
        })))
    }
}

/// The pass: options made into what the codec takes.
pub struct Quantize(Quantizer);

impl MatrixPass for Quantize {
    fn access(&self) -> Access {
        match self.0.group {
            Group::Column => Access::Whole,
            _ => Access::Rows,
        }
    }

    fn residual(&self) -> Residual {
        Residual::Drop
    }

    fn quantizer(&self) -> Option<Quantizer> {
        Some(self.0)
    }

    fn workspace_bytes(&self, rows: u64, cols: u64) -> u64 {
        // Unpacked codes of a row; column groups keep sums for every column.
        let per_column = match self.0.group {
            Group::Column => 64,
            _ => 16,
        };
        self.term_bytes(rows, cols)
            .saturating_add(cols.saturating_mul(per_column))
    }

    fn nanos(&self, rows: u64, cols: u64) -> f64 {
        let per_entry = match self.0.method {
            ScaleMethod::AbsMax => 1.0,
            ScaleMethod::Lsq => 10.0,
        };
        per_entry * rows as f64 * cols as f64
    }

    fn term_bytes(&self, rows: u64, cols: u64) -> u64 {
        let side = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        // Per row, so that no product of a file's claims can overflow.
        match self.0.group {
            Group::Column => {
                let codes = quantized_bytes(1, side(cols), self.0.scheme, Group::Row) as u64;
                codes
                    .saturating_mul(rows)
                    .saturating_add(cols.saturating_mul(3))
            }
            group => {
                let row = quantized_bytes(1, side(cols), self.0.scheme, group) as u64;
                row.saturating_mul(rows)
            }
        }
    }

    fn peel(&self, peel: &mut Peel<'_>) -> Result<Peeled, PassError> {
        let Quantizer {
            scheme,
            group,
            method,
            ..
        } = self.0;
        let (rows, cols) = (peel.rows, peel.cols);
        let done = quantize(peel.residual, rows, cols, scheme, group, method);
        let term = TermData::Quant(done.map_err(PassError::new)?.matrix);
        Ok(Peeled {
            note: term.label(),
            term: Some(term),
        })
    }

    fn peel_stored(
        &self,
        stored: Stored<'_>,
        _: Place<'_>,
    ) -> Option<Result<PeeledStored, PassError>> {
        let Quantizer {
            scheme,
            group,
            method,
            ..
        } = self.0;
        if group == Group::Column {
            return None;
        }
        let (float, bytes, rows, cols) = match stored {
            Stored::Bf16 { bytes, rows, cols } => (Float::Bf16, bytes, rows, cols),
            Stored::F16 { bytes, rows, cols } => (Float::F16, bytes, rows, cols),
            Stored::F32 { bytes, rows, cols } => (Float::F32, bytes, rows, cols),
        };
        let source = Source::Bytes(float, bytes);
        let done = quantize_source(source, rows, cols, scheme, group, method);
        Some(done.map_err(PassError::new).map(peeled_stored))
    }
}

fn peeled_stored(done: Quantized) -> PeeledStored {
    PeeledStored {
        term: TermData::Quant(done.matrix),
        weight_squares: done.sums.weight,
        residual_squares: done.sums.residual,
    }
}
