//! What a pipeline would make of a model whose weights are not there: terms by shape alone.
//!
//! So that a plan can be made of a `config.json`. Codes of integers have the same bytes as the passes
//! would store; a low-rank term has the rank that is asked for, outliers their density, a trellis its
//! mean bits.

use serde_json::{Map, Value};

use crate::ir::site::{Site, sites};
use crate::ir::{
    ColumnsTerm, FactorRef, LowRankTerm, Module, QuantTerm, Rotation, SparseTerm, Storage, Term,
    TrellisTerm, Weight, WeightId,
};
use crate::numeric::lowrank::coded_group;
use crate::numeric::quant::packed_len;
use crate::numeric::{Block, FactorFormat, Group, Scheme, Side};
use crate::pass::manager::Schedule;
use crate::plan::PlanError;
use crate::weights::DType;

/// A copy of the module with the terms that a pipeline would make.
///
/// # Errors
/// A pass, or an option of one, whose result does not follow from shapes.
pub fn imagine(module: &Module, schedule: &Schedule) -> Result<Module, PlanError> {
    let mut imagined = module.clone();
    for site in sites(module) {
        let steps = schedule.steps_for(&site);
        if steps.is_empty() {
            continue;
        }
        let mut terms = Vec::new();
        for step in steps {
            let Some((name, options)) = schedule.call(step) else {
                continue;
            };
            let mut maker = Maker {
                module: &mut imagined,
                site: &site,
                name,
                options: &options,
            };
            terms.extend(maker.term()?);
        }
        for &user in &site.users {
            if let Some(matrix) = imagined.op_mut(user).and_then(|op| op.kind.matrix_mut()) {
                matrix.terms.clone_from(&terms);
            }
        }
    }
    Ok(imagined)
}

struct Maker<'a> {
    module: &'a mut Module,
    site: &'a Site,
    name: &'a str,
    options: &'a Map<String, Value>,
}

impl Maker<'_> {
    fn refuse<T>(&self, problem: impl Into<String>) -> Result<T, PlanError> {
        Err(PlanError::unsupported("pass", self.name, problem))
    }

    /// A weight that is not stored.
    fn absent(&mut self, what: &str, dtype: DType, dims: Vec<u64>) -> WeightId {
        self.module.add_weight(Weight {
            name: format!("{}.{what}", self.site.name),
            dtype,
            dims,
            storage: Storage::Absent,
            sha256: None,
            meta: Default::default(),
        })
    }

    fn number(&self, key: &str, default: f64) -> Result<f64, PlanError> {
        match self.options.get(key) {
            None => Ok(default),
            Some(Value::Number(n)) => Ok(n.as_f64().unwrap_or(default)),
            Some(other) => self.refuse(format!(
                "what {key}={other} makes is not known without weights; give a number"
            )),
        }
    }

    fn text(&self, key: &str) -> Option<String> {
        self.options.get(key).map(|v| match v {
            Value::String(s) => s.clone(),
            other => other.to_string(),
        })
    }

    fn term(&mut self) -> Result<Option<Term>, PlanError> {
        match self.name {
            "int8" => self.quant(8, Group::Row, false),
            "int4" => self.quant(4, Group::Size(32), false),
            "int3" => self.quant(3, Group::Size(64), true),
            "int2" => self.quant(2, Group::Size(32), true),
            "lowrank" => self.low_rank(),
            "outlier" => self.outlier(),
            "trellis" => self.trellis(),
            "refine" => Ok(None),
            _ => self.refuse("what it makes is not known without weights; use int8, int4, int3, int2, lowrank, outlier or trellis"),
        }
    }

    fn quant(
        &mut self,
        bits: u8,
        group: Group,
        asymmetric: bool,
    ) -> Result<Option<Term>, PlanError> {
        let group = match self.text("group") {
            None => group,
            Some(word) => match word.parse() {
                Ok(group) => group,
                Err(_) => return self.refuse(format!("group={word} is no group")),
            },
        };
        let asymmetric = self
            .options
            .get("asymmetric")
            .and_then(Value::as_bool)
            .unwrap_or(asymmetric);
        let (rows, cols) = (self.site.rows, self.site.cols);
        let width = usize::try_from(cols).unwrap_or(usize::MAX);
        let per_row = group.per_row(width) as u64;
        let scales = match group {
            Group::Column => vec![cols],
            _ => vec![rows, per_row],
        };
        let codes = self.absent(
            "codes",
            DType::U8,
            vec![rows, packed_len(bits, width) as u64],
        );
        let scales = self.absent("scales", DType::F16, scales);
        let zeros = match asymmetric {
            true => {
                let bytes = packed_len(bits, usize::try_from(per_row).unwrap_or(0)) as u64;
                Some(self.absent("zeros", DType::U8, vec![rows, bytes]))
            }
            false => None,
        };
        Ok(Some(Term::Quant(QuantTerm {
            codes,
            scales,
            zeros,
            scheme: Scheme {
                bits,
                symmetric: !asymmetric,
            },
            group,
            rotation: None,
        })))
    }

    fn low_rank(&mut self) -> Result<Option<Term>, PlanError> {
        if self.options.contains_key("depth") || self.options.contains_key("energy") {
            return self.refuse(
                "ranks by energy or over a hierarchy are not known without weights; give rank=N",
            );
        }
        let least = self.site.rows.min(self.site.cols);
        let rank = self.number("rank", 64.0)?.min(least as f64) as usize;
        let format = match self.text("factors").as_deref() {
            None | Some("int8") => FactorFormat::Int8,
            Some("int4") => FactorFormat::Int4,
            Some("f16") => FactorFormat::F16,
            Some("f32") => FactorFormat::F32,
            Some(other) => return self.refuse(format!("factors={other} is no format")),
        };
        let size = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let block = Block {
            row0: 0,
            rows: size(self.site.rows),
            col0: 0,
            cols: size(self.site.cols),
            rank,
        };
        let mut factor = |side: Side, name: &str| {
            let (rows, cols) = side.shape(&block);
            let (rows64, cols64) = (rows as u64, cols as u64);
            match format.scheme() {
                None => {
                    let dtype = if format == FactorFormat::F32 {
                        DType::F32
                    } else {
                        DType::F16
                    };
                    FactorRef {
                        format,
                        data: self.absent(name, dtype, vec![rows64, cols64]),
                        scales: None,
                    }
                }
                Some(scheme) => {
                    let groups = coded_group(side, scheme).per_row(cols) as u64;
                    let bytes = packed_len(scheme.bits, cols) as u64;
                    FactorRef {
                        format,
                        data: self.absent(name, DType::U8, vec![rows64, bytes]),
                        scales: Some(self.absent(
                            &format!("{name}_scales"),
                            DType::F16,
                            vec![rows64, groups],
                        )),
                    }
                }
            }
        };
        let (u, v) = (factor(Side::U, "u"), factor(Side::V, "v"));
        Ok(Some(Term::LowRank(LowRankTerm {
            blocks: vec![block],
            u,
            v,
        })))
    }

    fn outlier(&mut self) -> Result<Option<Term>, PlanError> {
        let (rows, cols) = (self.site.rows, self.site.cols);
        if let Some(Value::Number(count)) = self.options.get("columns") {
            let count = count.as_u64().unwrap_or(0).min(cols);
            return Ok(Some(Term::Columns(ColumnsTerm {
                columns: self.absent("outlier_columns", DType::U32, vec![count]),
                values: self.absent("outlier_values", DType::F16, vec![rows, count]),
                count,
            })));
        }
        let density = self.number("density", 0.005)?;
        let nnz = (density * (rows * cols) as f64).round() as u64;
        let index = if cols > 65536 { DType::U32 } else { DType::U16 };
        Ok(Some(Term::Sparse(SparseTerm {
            values: self.absent("values", DType::F16, vec![nnz]),
            columns: self.absent("columns", index, vec![nnz]),
            offsets: self.absent("offsets", DType::U32, vec![rows + 1]),
            nnz,
        })))
    }

    fn trellis(&mut self) -> Result<Option<Term>, PlanError> {
        let (bits, states) = (
            self.number("bits", 3.0)?,
            self.number("states", 12.0)? as u8,
        );
        let (rows, cols) = (self.site.rows, self.site.cols);
        let size = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let stripe = (bits * cols.div_ceil(16) as f64).round() as u64 * 32;
        let rotated = self
            .options
            .get("rotate")
            .and_then(Value::as_bool)
            .unwrap_or(true);
        Ok(Some(Term::Trellis(TrellisTerm {
            codes: self.absent("codes", DType::U8, vec![rows.div_ceil(16), stripe]),
            scales: self.absent("scales", DType::F16, vec![rows.div_ceil(16)]),
            bits: self.absent("bits", DType::U8, vec![cols.div_ceil(16)]),
            states,
            rotation: rotated.then(|| Rotation::of(size(rows), size(cols), 0)),
        })))
    }
}
