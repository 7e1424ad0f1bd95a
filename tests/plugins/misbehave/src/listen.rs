//! Remarks what a module pass is told: the seed, and the statistics of each matrix.
//!
//! Before: -
//! After:  the same
//!
//! Cost: a reading of the statistics.
//! Source: -

use hlrc_pass::ir::patch::Patch;
use hlrc_pass::ir::site::sites;
use hlrc_pass::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Options of `listen-in-rust`.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Listen {}

/// The pass, and what it was told when it was built: the seed, and the first of its random numbers.
struct Listener(u64, u64);

impl Listener {
    fn build(_: Listen) -> Result<Pass, PassError> {
        let mut first = [0];
        hlrc_pass::host::random(&mut first)?;
        Ok(Pass::Module(Box::new(Self(
            hlrc_pass::host::seed()?,
            first[0],
        ))))
    }
}

impl ModulePass for Listener {
    fn calibration(&self) -> Calibration {
        Calibration::Used
    }

    fn run(&self, rewrite: &mut Rewrite<'_>) -> Result<Patch, PassError> {
        let mut first = [0];
        hlrc_pass::host::random(&mut first)?;
        let text = format!(
            "seed={} random={:016x} made={} by={:016x}",
            rewrite.seed, first[0], self.0, self.1
        );
        let mut said = vec![Remark::new(RemarkKind::Analysis, "module", text)];
        for site in sites(rewrite.module) {
            let text = match rewrite.moments(&site.name, site.cols)? {
                None => "no statistics".to_string(),
                Some(found) => {
                    let width = found.diagonal.len();
                    let sum = |x: &mut dyn Iterator<Item = &f32>| -> f64 {
                        x.map(|&x| f64::from(x)).sum()
                    };
                    let whole = found.hessian.iter();
                    let mut trace = whole.flat_map(|h| h.iter().step_by(width + 1));
                    format!(
                        "tokens={} width={width} diagonal={} trace={}",
                        found.tokens,
                        sum(&mut found.diagonal.iter()),
                        sum(&mut trace),
                    )
                }
            };
            said.push(Remark::new(RemarkKind::Analysis, &site.name, text));
        }
        rewrite.remarks.extend(said);
        Ok(Patch::new(rewrite.module, "listen-in-rust"))
    }
}

pass_entry!("listen-in-rust" in "listen.rs", Listen, Listener::build);
