//! What can be refused before the work begins.

use super::args::OptArgs;
use super::prepare::Prepared;
use super::target::Target;
use super::{Exit, Failure};
use crate::pass::Calibration;
use crate::pass::manager::Schedule;

/// Refuses what the output's format can't say, before hours are spent on it.
///
/// # Errors
/// A form that the output's format does not have.
pub fn form(prepared: &Prepared, target: &Target) -> Result<(), Failure> {
    let onnx = matches!(target, Target::Onnx(_) | Target::OnnxStdout(_));
    if !onnx || !prepared.calls().iter().any(|call| call.name == "trellis") {
        return Ok(());
    }
    let what = "trellis codes have no ONNX form, and the output is to be ONNX";
    let help = "write a .hlrc folder, or use int8, int4, int3 or int2 (@q8, @hl4_m), with `rotate` or \
                `fold-rotations` in front";
    Err(Failure::new(Exit::Usage, what).help(help))
}

/// Statistics are given where a pass needs them, and only where one uses them.
///
/// # Errors
/// Statistics that are missing, or that nobody uses.
pub fn calibration(
    args: &OptArgs,
    prepared: &Prepared,
    schedule: &Schedule,
) -> Result<(), Failure> {
    let find = |least: &[Calibration]| {
        let mut steps = schedule.steps.iter();
        steps.find(|step| least.contains(&step.pass.calibration()))
    };
    if args.calib.is_empty() {
        let Some(step) = find(&[Calibration::Needed]) else {
            return Ok(());
        };
        let what = format!("pass {} needs statistics of the activations", step.name);
        return Err(Failure::new(Exit::Usage, what).help(
            "give text with --calib TEXT, or statistics that `hlrc-opt calibrate` has made",
        ));
    }
    let used = find(&[Calibration::Needed, Calibration::Used]).is_some();
    if !used && prepared.training.is_none() {
        let what = "--calib would have no effect: no pass of the pipeline uses statistics";
        return Err(Failure::new(Exit::Usage, what).help(
            "`trellis`, `int4{method=gptq}`, `lowrank` and `outlier` do; `hlrc-opt passes NAME` says what a pass uses",
        ));
    }
    Ok(())
}
