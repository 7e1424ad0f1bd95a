//! `plugin check`: a plugin's passes on small matrices, in the ways in which a run uses them.

mod kinds;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use serde_json::Map;

use super::super::{Exit, Failure};
use crate::ir::Module;
use crate::ir::site::sites;
use crate::ir::text::{parse, print};
use crate::ir::verify::verify;
use crate::pass::manager::{self, RunOptions, Schedule};
use crate::pass::pipeline::{Pipeline, contradiction, option_docs};
use crate::pass::plugin::Plugin;
use crate::pass::{Calibration, MatrixPass, MomentSource, Moments, Pass, PassEntry};

/// Modules that passes are tried on: odd sizes, a matrix of zeros, one that is two-sided small.
const MODULES: [&str; 3] = [
    "hlir 1\nmodule \"check\" {\n  weight @a.weight : f32[48,64] = synthetic(seed=1, power=1.2, scale=0.02, outliers=0.01)\n  graph @main(%x : f32[B,64]) -> (%y) {\n    %y = linear %x [48,64] { dense(@a.weight) } name(\"a\") : f32[B,48]\n  }\n}\n",
    "hlir 1\nmodule \"check\" {\n  weight @a.weight : bf16[37,51] = synthetic(seed=2, power=1.0, scale=0.02, outliers=0.0)\n  graph @main(%x : f32[B,51]) -> (%y) {\n    %y = linear %x [37,51] { dense(@a.weight) } name(\"a\") : f32[B,37]\n  }\n}\n",
    "hlir 1\nmodule \"check\" {\n  weight @a.weight : f16[130,32] = synthetic(seed=3, power=1.0, scale=0.0, outliers=0.0)\n  graph @main(%x : f32[B,32]) -> (%y) {\n    %y = linear %x [130,32] { dense(@a.weight) } name(\"a\") : f32[B,130]\n  }\n}\n",
];

/// Tries everything; the report, or the first failure.
pub(super) fn run(plugin: &Plugin) -> Result<String, Failure> {
    let mut text = format!("{} {}: loads\n", plugin.name, plugin.version);
    let mut terms = BTreeMap::new();
    for entry in &plugin.passes {
        let failed = |what: String| {
            Failure::new(
                Exit::Failure,
                format!("plugin {}: pass {}: {what}", plugin.name, entry.name),
            )
        };
        documented(entry).map_err(failed)?;
        let built = (entry.build)(Map::new()).map_err(|e| failed(format!("its defaults: {e}")))?;
        // Statistics go to another process as a file, and these are in none.
        let elsewhere = plugin.isolated && matches!(built, Pass::Module(_));
        let statistics = built.calibration() != Calibration::Unused && !elsewhere;
        let needs = built.calibration() == Calibration::Needed && !statistics;
        for module in MODULES.iter().filter(|_| !needs) {
            works(entry, module, statistics).map_err(failed)?;
        }
        if let Pass::Matrix(pass) = &built {
            for module in MODULES {
                let found = kinds::checked(pass.as_ref(), module, statistics).map_err(failed)?;
                // The first matrix says most: the last is zero.
                if let Some((kind, what)) = found {
                    terms.entry(kind).or_insert(what);
                }
            }
        }
        let kind = match &built {
            Pass::Matrix(pass) => {
                stays_within(pass.as_ref()).map_err(failed)?;
                "matrix pass"
            }
            Pass::Module(_) => "module pass",
        };
        let ran = match needs {
            true => "not run, since it needs statistics of activations".to_string(),
            false => format!(
                "works on {} modules, the same bytes for 1 and 3 threads",
                MODULES.len()
            ),
        };
        let name = entry.name;
        text.push_str(&format!(
            "pass {name} ({kind}): options documented, {ran}\n"
        ));
    }
    for (kind, _) in &plugin.kinds {
        let found = terms.get(kind.as_str());
        let what = found.map_or("not checked: no pass above makes one", String::as_str);
        text.push_str(&format!("term {kind}: {what}\n"));
    }
    Ok(text)
}

fn documented(entry: &PassEntry) -> Result<(), String> {
    if entry.summary.is_empty() {
        return Err("it has no summary".to_string());
    }
    let schema = (entry.schema)();
    if let Some(what) = contradiction(&schema) {
        return Err(what);
    }
    let bare = option_docs(&schema).into_iter().find(|o| o.doc.is_empty());
    match bare {
        Some(option) => Err(format!("option `{}` has no documentation", option.name)),
        None => Ok(()),
    }
}

/// Claims of memory and bytes that can be added up.
fn stays_within(pass: &dyn MatrixPass) -> Result<(), String> {
    let cost = pass.cost(4096, 4096).map_err(|e| e.to_string())?;
    let bytes = cost.term_bytes;
    let most = 4096 * 4096 * 16;
    match bytes <= most {
        true => Ok(()),
        false => Err(format!(
            "it says that its term of a 4096x4096 matrix takes {bytes} bytes"
        )),
    }
}

/// Statistics of inputs that are all alike and a little correlated.
#[derive(Debug)]
struct Correlated(BTreeMap<String, u64>);

impl Correlated {
    fn of(module: &Module) -> Self {
        let widths = sites(module).into_iter().map(|site| (site.name, site.cols));
        Self(widths.collect())
    }
}

impl MomentSource for Correlated {
    fn identity(&self) -> String {
        "plugin check".to_string()
    }

    fn moments(&self, site: &str) -> Result<Option<Moments>, String> {
        Ok(self.0.get(site).map(|&width| correlated(width as usize)))
    }
}

/// `64 · (I + 11ᵀ / 4)`, as of 64 tokens.
fn correlated(width: usize) -> Moments {
    let mut hessian = vec![16f32; width * width];
    hessian
        .iter_mut()
        .step_by(width + 1)
        .for_each(|entry| *entry = 80.0);
    Moments {
        hessian: Some(hessian),
        diagonal: vec![80.0; width],
        tokens: 64,
    }
}

fn works(entry: &PassEntry, text: &str, statistics: bool) -> Result<(), String> {
    let pipeline = Pipeline::parse(entry.name).map_err(|e| e.to_string())?;
    let schedule = Schedule::new(&pipeline, &[], None).map_err(|e| e.to_string())?;
    let mut first: Option<String> = None;
    for threads in [1, 3] {
        let mut module = parse(text).map_err(|e| e.to_string())?;
        module.base_dir = Path::new("").to_path_buf();
        let interrupt = AtomicBool::new(false);
        let correlated = Correlated::of(&module);
        let options = RunOptions {
            moments: statistics.then_some(&correlated as &dyn MomentSource),
            ..RunOptions::new(threads, &interrupt)
        };
        let ran = manager::run_hashed(&mut module, &schedule, &options);
        ran.map_err(|e| e.to_string())?;
        verify(&module).map_err(|e| e.to_string())?;
        let printed = print(&module);
        match &first {
            None => first = Some(printed),
            Some(first) if *first == printed => {}
            Some(_) => return Err("other bytes with three threads than with one".to_string()),
        }
    }
    Ok(())
}
