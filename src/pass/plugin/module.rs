//! A plugin's module pass as the manager sees it.
#![allow(unsafe_code)]

use super::context::Context;
use super::matrix::Made;
use super::scene::{ModuleScene, Scene};
use crate::ir::Module;
use crate::ir::patch::Patch;
use crate::pass::{ModulePass, PassError, Remark};

/// A plugin's module pass.
pub(super) struct ForeignModule {
    made: Made,
}

impl ForeignModule {
    pub(super) fn new(made: Made) -> Self {
        Self { made }
    }
}

impl ModulePass for ForeignModule {
    fn run(&self, module: &Module, remarks: &mut Vec<Remark>) -> Result<Patch, PassError> {
        let def = self.made.def;
        let call = def.raw.run.ok_or_else(|| def.error("it has no `run`"))?;
        let rule = format!("{} (plugin {})", def.name, def.plugin);
        let scene = Scene::Module(Box::new(ModuleScene::new(module, &rule)));
        let context = Context::open(&module.name, 0, scene);
        // SAFETY: the function is the plugin's, by the interface.
        let status = unsafe { call(self.made.pass(), context.number) };
        let done = context.close(status).map_err(|e| def.refusal(&e))?;
        let mut state = context.state();
        let empty = || Patch::new(module, &rule);
        let scene = match std::mem::replace(&mut state.scene, Scene::Plain) {
            Scene::Module(scene) if done => scene,
            _ => return Ok(empty()),
        };
        remarks.append(&mut state.remarks);
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
