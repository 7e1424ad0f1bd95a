//! Takes the columns of largest norm out of what is left.
//!
//! A skeleton: say here in a sentence or two what the pass does and why that pays.
//!
//! Before: `linear %x { dense(@w) }`
//! After:  `linear %x { columns(@w.columns, @w.values, count=1) + dense(@rest) }`
//!
//! Cost: one reading of the matrix; a number per column of working memory.
//! Source: -

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::numeric::Sparse;
use crate::numeric::sparse::{column_energies, select_columns};
use crate::pass::terms::TermData;
use crate::pass::{
    Access, MatrixPass, Pass, PassError, Peel, Peeled, Remark, RemarkKind, Residual,
};
use crate::passes::shared::entry::pass_entry;

/// Options of `template`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Template {
    /// How many columns are taken out.
    #[schemars(range(min = 1))]
    pub count: u32,
}

impl Default for Template {
    fn default() -> Self {
        Self { count: 1 }
    }
}

impl MatrixPass for Template {
    fn access(&self) -> Access {
        // `Access::Rows` where a row's result depends on that row alone: it needs less memory.
        Access::Whole
    }

    fn residual(&self) -> Residual {
        Residual::Drop
    }

    fn workspace_bytes(&self, _rows: u64, cols: u64) -> u64 {
        cols.saturating_mul(16)
    }

    fn term_bytes(&self, rows: u64, cols: u64) -> u64 {
        let column = rows.saturating_mul(2).saturating_add(4);
        column.saturating_mul(cols.min(self.count.into()))
    }

    fn peel(&self, peel: &mut Peel<'_>) -> Result<Peeled, PassError> {
        let (rows, cols) = (peel.rows, peel.cols);
        let energies = column_energies(peel.residual, rows, cols).map_err(PassError::new)?;
        let chosen = select_columns(&energies, self.count as usize);
        // What the term holds is taken from the residual, as rounded by its storage.
        let sparse = Sparse::take_columns(peel.residual, rows, cols, &chosen);
        let term = TermData::Sparse(sparse.map_err(PassError::new)?);
        let text = format!("took out {}", term.label());
        peel.remarks
            .push(Remark::new(RemarkKind::Passed, peel.site, text));
        Ok(Peeled {
            note: term.label(),
            term: Some(term),
        })
    }
}

pass_entry!("template" in "template.rs", Template, |options: Template| Ok(Pass::Matrix(
    Box::new(options)
)));
