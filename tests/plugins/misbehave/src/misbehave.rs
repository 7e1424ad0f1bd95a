//! Does what a pass must not do.
//!
//! Before: -
//! After:  -
//!
//! Cost: the run.
//! Source: -

use hlrc_pass::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Options of `misbehave`.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Misbehave {
    /// What it does.
    pub how: How,
}

/// What it does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// Nothing wrong.
    #[default]
    Well,
    /// Panics when it is built.
    PanicBuild,
    /// Panics when it is asked what it takes.
    PanicCost,
    /// Panics when it peels.
    PanicPeel,
    /// Panics when it is dropped.
    PanicDrop,
    /// Leaves a residual that is not the matrix minus its term.
    Lie,
    /// Leaves NaN in the residual.
    Nan,
    /// Makes a term of another shape.
    Shape,
    /// Goes on until the user asks it to stop.
    Loop,
    /// Goes on for ever.
    Deaf,
    /// Follows a null pointer.
    Crash,
    /// Ends the process.
    Exit,
    /// Prints to standard output.
    Print,
}

impl Drop for Misbehave {
    fn drop(&mut self) {
        assert!(self.how != How::PanicDrop, "dropped");
    }
}

impl Misbehave {
    fn build(self) -> Result<Pass, PassError> {
        assert!(self.how != How::PanicBuild, "built");
        Ok(Pass::Matrix(Box::new(self)))
    }
}

impl MatrixPass for Misbehave {
    fn access(&self) -> Access {
        Access::Whole
    }

    fn residual(&self) -> Residual {
        Residual::Keep
    }

    fn workspace_bytes(&self, _: u64, _: u64) -> u64 {
        assert!(self.how != How::PanicCost, "no bill today");
        0
    }

    fn term_bytes(&self, _: u64, _: u64) -> u64 {
        0
    }

    #[allow(unsafe_code)]
    fn peel(&self, peel: &mut Peel<'_>) -> Result<Peeled, PassError> {
        let mut term = None;
        match self.how {
            How::PanicPeel => {
                let nothing = &peel.site.as_bytes()[..0];
                return Err(PassError::new(nothing[peel.rows]));
            }
            How::Lie => peel.residual.iter_mut().for_each(|x| *x *= 0.5),
            How::Nan => peel.residual.fill(f32::NAN),
            How::Shape => {
                term = Some(TermData::Dense {
                    dtype: DType::F32,
                    bytes: vec![0; 4],
                    rows: 1,
                    cols: 1,
                });
            }
            How::Loop => {
                while !hlrc_pass::host::cancelled() {
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
                return Err(PassError::new("stopped, as asked"));
            }
            How::Deaf => loop {
                std::thread::sleep(std::time::Duration::from_secs(1));
            },
            // SAFETY: there is none; the host must survive this in a process of its own.
            How::Crash => unsafe { std::ptr::null_mut::<u8>().write_volatile(1) },
            How::Exit => std::process::exit(0),
            How::Print => println!("not part of any protocol"),
            How::Well | How::PanicBuild | How::PanicCost | How::PanicDrop => {}
        }
        Ok(Peeled {
            note: "nothing".to_string(),
            term,
        })
    }
}

pass_entry!("misbehave" in "misbehave.rs", Misbehave, Misbehave::build);

/// A module pass that does what it must not.
pub mod rewrite {
    use hlrc_pass::ir::patch::Patch;
    use hlrc_pass::ir::{OpId, OpRef};

    use super::*;

    /// Options of `misbehave-module`.
    #[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
    #[serde(deny_unknown_fields, default)]
    pub struct Mangle {
        /// Panics in place of removing an op.
        pub panic: bool,
    }

    impl ModulePass for Mangle {
        fn run(&self, rewrite: &mut Rewrite<'_>) -> Result<Patch, PassError> {
            let module = rewrite.module;
            assert!(!self.panic, "in a module of {} graphs", module.graphs.len());
            // What reads the op's result is left without it.
            let mut patch = Patch::new(module, "misbehave-module");
            let at = OpRef {
                graph: 0,
                op: OpId::new(0),
            };
            patch.replace(at, Vec::new());
            Ok(patch)
        }
    }

    pass_entry!("misbehave-module" in "misbehave.rs", Mangle, |options: Mangle| Ok(
        Pass::Module(Box::new(options))
    ));
}
