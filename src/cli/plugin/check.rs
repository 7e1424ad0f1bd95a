//! `plugin check`: a plugin's passes on small matrices, in the ways in which a run uses them.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use serde_json::Map;

use super::super::{Exit, Failure};
use crate::ir::text::{parse, print};
use crate::ir::verify::verify;
use crate::pass::manager::{self, PrintIr, RunOptions, Schedule, Silent};
use crate::pass::pipeline::{Pipeline, option_docs};
use crate::pass::plugin::Plugin;
use crate::pass::{MatrixPass, Pass, PassEntry};
use crate::store::{Reader, Sink};
use crate::weights::FileCache;

/// Modules that passes are tried on: odd sizes, a matrix of zeros, one that is two-sided small.
const MODULES: [&str; 3] = [
    "hlir 1\nmodule \"check\" {\n  weight @a.weight : f32[48,64] = synthetic(seed=1, power=1.2, scale=0.02, outliers=0.01)\n  graph @main(%x : f32[B,64]) -> (%y) {\n    %y = linear %x [48,64] { dense(@a.weight) } name(\"a\") : f32[B,48]\n  }\n}\n",
    "hlir 1\nmodule \"check\" {\n  weight @a.weight : bf16[37,51] = synthetic(seed=2, power=1.0, scale=0.02, outliers=0.0)\n  graph @main(%x : f32[B,51]) -> (%y) {\n    %y = linear %x [37,51] { dense(@a.weight) } name(\"a\") : f32[B,37]\n  }\n}\n",
    "hlir 1\nmodule \"check\" {\n  weight @a.weight : f16[130,32] = synthetic(seed=3, power=1.0, scale=0.0, outliers=0.0)\n  graph @main(%x : f32[B,32]) -> (%y) {\n    %y = linear %x [130,32] { dense(@a.weight) } name(\"a\") : f32[B,130]\n  }\n}\n",
];

/// Tries everything; the report, or the first failure.
pub(super) fn run(plugin: &Plugin) -> Result<String, Failure> {
    let mut text = format!("{} {}: loads\n", plugin.name, plugin.version);
    for entry in &plugin.passes {
        let failed = |what: String| {
            Failure::new(
                Exit::Failure,
                format!("plugin {}: pass {}: {what}", plugin.name, entry.name),
            )
        };
        documented(entry).map_err(failed)?;
        let built = (entry.build)(Map::new()).map_err(|e| failed(format!("its defaults: {e}")))?;
        for module in MODULES {
            works(entry, module).map_err(failed)?;
        }
        let kind = match &built {
            Pass::Matrix(pass) => {
                stays_within(pass.as_ref()).map_err(failed)?;
                "matrix pass"
            }
            Pass::Module(_) => "module pass",
        };
        text.push_str(&format!(
            "pass {} ({kind}): options documented, works on {} modules, the same bytes for 1 and 3 threads\n",
            entry.name,
            MODULES.len()
        ));
    }
    for (kind, _) in &plugin.kinds {
        text.push_str(&format!(
            "term {kind}: decoded wherever a pass above made one\n"
        ));
    }
    Ok(text)
}

fn documented(entry: &PassEntry) -> Result<(), String> {
    if entry.summary.is_empty() {
        return Err("it has no summary".to_string());
    }
    let schema = (entry.schema)();
    let bare = option_docs(&schema).into_iter().find(|o| o.doc.is_empty());
    match bare {
        Some(option) => Err(format!("option `{}` has no documentation", option.name)),
        None => Ok(()),
    }
}

/// Claims of memory and bytes that can be added up.
fn stays_within(pass: &dyn MatrixPass) -> Result<(), String> {
    let bytes = pass.term_bytes(4096, 4096);
    let most = 4096 * 4096 * 16;
    match bytes <= most {
        true => Ok(()),
        false => Err(format!(
            "it says that its term of a 4096x4096 matrix takes {bytes} bytes"
        )),
    }
}

fn works(entry: &PassEntry, text: &str) -> Result<(), String> {
    let pipeline = Pipeline::parse(entry.name).map_err(|e| e.to_string())?;
    let schedule = Schedule::new(&pipeline, &[], None).map_err(|e| e.to_string())?;
    let mut first: Option<String> = None;
    for threads in [1, 3] {
        let mut module = parse(text).map_err(|e| e.to_string())?;
        module.base_dir = Path::new("").to_path_buf();
        let (cache, interrupt) = (FileCache::default(), AtomicBool::new(false));
        let options = RunOptions {
            seed: 0,
            threads,
            mem_limit: None,
            verify_each: true,
            bisect_limit: None,
            print: PrintIr::default(),
            moments: None,
            interrupt: &interrupt,
        };
        let mut sink = Sink::hashes();
        sink.reserve_names(&module);
        let reader = Reader::new(&cache);
        let ran = manager::run(
            &mut module,
            &schedule,
            &reader,
            &mut sink,
            &options,
            &Silent,
        );
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
