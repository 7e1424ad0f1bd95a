//! What a pass is: the traits that passes implement, and what they get and give.
//!
//! Plugins see the same: their crate `hlrc-pass` is made of this file, so that a pass's source reads alike
//! in both places.

use std::fmt;
use std::path::Path;

use super::remark::Remark;
use super::terms::TermData;
use crate::ir::patch::Patch;
use crate::ir::{Module, Rotation};
use crate::numeric::hessian::HessianError;
use crate::numeric::{Group, ScaleMethod, Scheme};

/// A pass with its options, ready to run.
pub enum Pass {
    /// Works on one matrix at a time.
    Matrix(Box<dyn MatrixPass>),
    /// Works on the whole module.
    Module(Box<dyn ModulePass>),
}

impl Pass {
    /// What it does with statistics of activations.
    pub fn calibration(&self) -> Calibration {
        match self {
            Pass::Matrix(pass) => pass.calibration(),
            Pass::Module(pass) => pass.calibration(),
        }
    }
}

/// Which part of a matrix a pass must see at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Rows by themselves: the result for a row depends on that row alone.
    Rows,
    /// The whole matrix.
    Whole,
}

/// What becomes of the residual behind a pass when no later pass takes it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residual {
    /// It is dropped: nothing of it is stored.
    Drop,
    /// It is dropped at once, even where a later pass would take it up.
    DropNow,
    /// It is stored as a dense term.
    Keep,
}

/// What a pass does with statistics of the activations (`--calib`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Calibration {
    /// Nothing.
    Unused,
    /// It does better with them.
    Used,
    /// It does not work without them.
    Needed,
}

/// Second moments of what goes into a matrix `[out, in]`, on some text.
#[derive(Clone, Debug)]
pub struct Moments {
    /// `H = Σ x xᵀ`, `[in, in]`; none where only its diagonal is known.
    pub hessian: Option<Vec<f32>>,
    /// Σ x², `[in]`
    pub diagonal: Vec<f32>,
    /// How many tokens were seen.
    pub tokens: u64,
}

impl Moments {
    /// These, where they are of so many inputs.
    ///
    /// # Errors
    /// They are of another model.
    pub fn of_width(self, inputs: u64) -> Result<Self, String> {
        let width = self.diagonal.len() as u64;
        if width == inputs {
            return Ok(self);
        }
        Err(format!(
            "the statistics of --calib are of {width} inputs, the matrix has {inputs}: they are of another model"
        ))
    }
}

/// Where moments come from, site by site.
pub trait MomentSource: Sync + fmt::Debug {
    /// What they are, so that a run with others is another run.
    fn identity(&self) -> String;

    /// The moments of a site's input; `None` where it was not seen.
    ///
    /// # Errors
    /// What is wrong with the file.
    fn moments(&self, site: &str) -> Result<Option<Moments>, String>;

    /// Whether they are of the model behind the run's module passes. Else they are of its source, and turn
    /// with the inputs of matrices that a module pass turned.
    fn behind(&self) -> bool {
        false
    }

    /// The file that they are in, which another process can open.
    fn file(&self) -> Option<&Path> {
        None
    }
}

/// A pass that takes one term out of a matrix's residual.
pub trait MatrixPass: Send + Sync {
    /// What it must see of a matrix at once.
    fn access(&self) -> Access;

    /// What becomes of the residual if this is the last matrix pass of a site.
    fn residual(&self) -> Residual;

    /// The quantizer that this pass is, for passes before it that ask what follows.
    fn quantizer(&self) -> Option<Quantizer> {
        None
    }

    /// Whether it quantizes what it gets, so that a rotation before it has an effect.
    fn quantizes(&self) -> bool {
        self.quantizer().is_some()
    }

    /// What it does with statistics of activations.
    fn calibration(&self) -> Calibration {
        Calibration::Unused
    }

    /// Bytes of working memory for a matrix `[rows, cols]`, the residual itself not counted.
    fn workspace_bytes(&self, rows: u64, cols: u64) -> u64;

    /// Time on one core for a matrix `[rows, cols]`, nanoseconds, roughly: for dry runs.
    fn nanos(&self, rows: u64, cols: u64) -> f64 {
        2.0 * rows as f64 * cols as f64
    }

    /// Upper bound of the bytes of the term that it makes.
    fn term_bytes(&self, rows: u64, cols: u64) -> u64;

    /// The three above at once, as the manager asks for them.
    ///
    /// # Errors
    /// A pass of a plugin could not say.
    fn cost(&self, rows: u64, cols: u64) -> Result<Cost, PassError> {
        Ok(Cost {
            workspace_bytes: self.workspace_bytes(rows, cols),
            term_bytes: self.term_bytes(rows, cols),
            nanos: self.nanos(rows, cols),
        })
    }

    /// Takes the term out: on return `peel.residual` is what it was minus the term as stored.
    ///
    /// # Errors
    /// What is wrong with this matrix; the manager names pass and tensor.
    fn peel(&self, peel: &mut Peel<'_>) -> Result<Peeled, PassError>;

    /// The same from the bytes of a stored row-major matrix, where the residual is not needed:
    /// one pass over 16-bit weights instead of three over 32-bit ones. `None`: use [`Self::peel`].
    fn peel_stored(
        &self,
        _stored: Stored<'_>,
        _place: Place<'_>,
    ) -> Option<Result<PeeledStored, PassError>> {
        None
    }
}

/// A pass that rewrites the module as a graph.
pub trait ModulePass: Send + Sync {
    /// What it does with statistics of activations.
    fn calibration(&self) -> Calibration {
        Calibration::Unused
    }

    /// The changes that it asks for; an empty patch where there are none.
    ///
    /// # Errors
    /// What is wrong with this module.
    fn run(&self, rewrite: &mut Rewrite<'_>) -> Result<Patch, PassError>;
}

/// A module in the hands of a pass.
pub struct Rewrite<'a> {
    /// The module, as passes before this one left it.
    pub module: &'a Module,
    /// Seed of the run.
    pub seed: u64,
    /// Statistics of activations by site, for passes that say that they use them; none in a dry run.
    pub statistics: Option<&'a dyn MomentSource>,
    /// Remarks about the module and its sites.
    pub remarks: &'a mut Vec<Remark>,
}

impl<'a> Rewrite<'a> {
    /// A module without statistics, and a seed of 0.
    pub fn new(module: &'a Module, remarks: &'a mut Vec<Remark>) -> Self {
        Self {
            module,
            seed: 0,
            statistics: None,
            remarks,
        }
    }

    /// Moments of what goes into a site's matrix of so many inputs; `None` where it was not seen.
    ///
    /// # Errors
    /// The file can't be read, or is of another model.
    pub fn moments(&self, site: &str, inputs: u64) -> Result<Option<Moments>, PassError> {
        let Some(source) = self.statistics else {
            return Ok(None);
        };
        let named = |e: String| PassError::new(format!("{site}: {e}"));
        let found = source.moments(site).map_err(named)?;
        found.map(|m| m.of_width(inputs)).transpose().map_err(named)
    }
}

/// The integer scheme of a quantizing pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantizer {
    /// Bits and symmetry.
    pub scheme: Scheme,
    /// Which weights share a scale.
    pub group: Group,
    /// How scales are chosen.
    pub method: ScaleMethod,
    /// Whether errors make up for each other on the inputs that were seen.
    pub feedback: bool,
}

/// A matrix, or some of its rows, in the hands of a pass.
pub struct Peel<'a> {
    /// The site's name, for remarks.
    pub site: &'a str,
    /// Rows at hand: all of them for [`Access::Whole`].
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// `[rows, cols]`, row-major: what earlier passes left.
    pub residual: &'a mut [f32],
    /// Seed of this site and pass, from the run's seed and the site's name.
    pub seed: u64,
    /// The quantizer that comes later for this site, if one does.
    pub next: Option<Quantizer>,
    /// Whether a quantizer of any kind comes later for this site.
    pub quantized_later: bool,
    /// Moments of the site's input, for passes that say that they use them.
    pub moments: Option<&'a Moments>,
    /// The coordinates of `residual`, where they are not the matrix's own. A pass that rotates it says
    /// so here; quantizers behind it make codes in these coordinates.
    pub rotation: &'a mut Option<Rotation>,
    /// Seed of rotations: of the run, so that matrices that share an input share its rotation.
    pub rotation_seed: u64,
    /// Terms that passes before this one have made of this matrix in the same run, in order; a pass that
    /// changes one keeps the sum of terms and residual.
    pub earlier: Vec<Earlier<'a>>,
    /// Remarks about this site.
    pub remarks: &'a mut Vec<Remark>,
}

/// A term of an earlier pass, and that pass.
pub struct Earlier<'a> {
    /// The pass.
    pub pass: &'a dyn MatrixPass,
    /// Its term.
    pub term: &'a mut TermData,
}

/// What a pass took out.
pub struct Peeled {
    /// The term; `None` where the pass found nothing worth taking, with a remark that says so.
    pub term: Option<TermData>,
    /// Short text for progress lines: `r64`, `0.5%`.
    pub note: String,
}

/// What a pass takes for a matrix.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Working memory, bytes, without the residual.
    pub workspace_bytes: u64,
    /// Upper bound of the bytes of its term.
    pub term_bytes: u64,
    /// Time on one core, nanoseconds.
    pub nanos: f64,
}

/// Where stored rows are of; as in [`Peel`].
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The site's name.
    pub site: &'a str,
    /// Seed of this site and pass.
    pub seed: u64,
}

/// A stored matrix's rows, as they are in the file.
#[derive(Clone, Copy)]
pub enum Stored<'a> {
    /// bfloat16
    Bf16 {
        /// `[rows, cols]`, little-endian, no alignment.
        bytes: &'a [u8],
        /// Rows.
        rows: usize,
        /// Columns.
        cols: usize,
    },
    /// IEEE half
    F16 {
        /// `[rows, cols]`, little-endian, no alignment.
        bytes: &'a [u8],
        /// Rows.
        rows: usize,
        /// Columns.
        cols: usize,
    },
    /// IEEE single
    F32 {
        /// `[rows, cols]`, little-endian, no alignment.
        bytes: &'a [u8],
        /// Rows.
        rows: usize,
        /// Columns.
        cols: usize,
    },
}

/// What a pass took out of stored rows.
pub struct PeeledStored {
    /// The term.
    pub term: TermData,
    /// Σ w² over the rows.
    pub weight_squares: f64,
    /// Σ (w − term)² over the rows.
    pub residual_squares: f64,
}

/// Why a pass could not do its work on a matrix or module.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct PassError(pub String);

impl PassError {
    /// An error with this text: what is wrong, and what to do about it.
    pub fn new(text: impl fmt::Display) -> Self {
        Self(text.to_string())
    }
}

impl Peeled {
    /// No term; a remark says why.
    pub fn nothing() -> Self {
        Peeled {
            term: None,
            note: "nothing".to_string(),
        }
    }
}

impl From<HessianError> for PassError {
    fn from(error: HessianError) -> Self {
        PassError::new(error)
    }
}
