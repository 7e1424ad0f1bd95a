//! A plugin's module pass as the manager sees it.
#![allow(unsafe_code)]

use super::borrow::calibration_in;
use super::context::Context;
use super::matrix::Made;
use super::scene::{ModuleScene, Scene, Statistics};
use crate::ir::patch::Patch;
use crate::pass::{Calibration, ModulePass, PassError, Rewrite};

/// A plugin's module pass.
pub(super) struct ForeignModule {
    made: Made,
    calibration: Calibration,
}

impl ForeignModule {
    pub(super) fn new(made: Made) -> Result<Self, PassError> {
        let calibration = match made.traits()? {
            Some(traits) => calibration_in(traits.calibration).map_err(|e| made.def.refusal(&e))?,
            None => Calibration::Unused,
        };
        Ok(Self { made, calibration })
    }
}

impl ModulePass for ForeignModule {
    fn calibration(&self) -> Calibration {
        self.calibration
    }

    fn run(&self, rewrite: &mut Rewrite<'_>) -> Result<Patch, PassError> {
        let module = rewrite.module;
        let def = self.made.def;
        let call = def.raw.run.ok_or_else(|| def.error("it has no `run`"))?;
        let rule = format!("{} (plugin {})", def.name, def.plugin);
        // SAFETY: `rewrite` lives during this call, which closes the context before it returns.
        let statistics = rewrite.statistics.map(|s| unsafe { Statistics::new(s) });
        let scene = Scene::Module(Box::new(ModuleScene::new(module, &rule, statistics)));
        let context = Context::open(&module.name, rewrite.seed, scene);
        // SAFETY: the function is the plugin's, by the interface.
        let status = unsafe { call(self.made.pass(), context.number) };
        let done = context.close(status).map_err(|e| def.refusal(&e))?;
        let mut state = context.state();
        let empty = || Patch::new(module, &rule);
        let scene = match std::mem::replace(&mut state.scene, Scene::Plain) {
            Scene::Module(scene) if done => scene,
            _ => return Ok(empty()),
        };
        rewrite.remarks.append(&mut state.remarks);
        match scene.whole {
            None => Ok(scene.patch),
            Some(_) if !scene.patch.is_empty() => {
                Err(def
                    .error("it gave a whole module and single edits; only one of them can count"))
            }
            Some(whole) if whole == *module => Ok(empty()),
            Some(whole) => Ok(Patch::whole(module, &rule, whole)),
        }
    }
}
