//! A module pass behind the function that the host calls.
#![allow(unsafe_code)]

use hlrc_pass_abi::*;

use crate::export::{guard, instance};
use crate::host::{self, check, context};
use crate::ir::text::{parse, print};
use crate::pass::borrow::{self, calibration_out, lend, no_traits, text};
use crate::pass::{Calibration, MomentSource, Moments, Pass, PassError, Rewrite};

/// Statistics of activations that the host has.
#[derive(Debug)]
struct OfHost;

impl MomentSource for OfHost {
    fn identity(&self) -> String {
        "the host's".to_string()
    }

    fn moments(&self, site: &str) -> Result<Option<Moments>, String> {
        host::moments(site).map_err(|e| e.to_string())
    }
}

pub(crate) unsafe extern "C" fn traits(
    pass: HlrcUser,
    number: HlrcContext,
    out: *mut HlrcMatrixTraits,
) -> HlrcStatus {
    guard(number, || {
        // SAFETY: the host gives a pass of `create` and room for the struct, by the interface.
        let pass = unsafe { instance(pass) }?;
        let traits = HlrcMatrixTraits {
            calibration: calibration_out(pass.calibration()),
            ..no_traits()
        };
        // SAFETY: as above.
        unsafe { borrow::fill(out, &traits) }?;
        Ok(HLRC_OK)
    })
}

pub(crate) unsafe extern "C" fn run(pass: HlrcUser, number: HlrcContext) -> HlrcStatus {
    guard(number, || {
        // SAFETY: the host gives a pass of `create`, by the interface.
        let Pass::Module(pass) = unsafe { instance(pass) }? else {
            return Err(PassError::new("with these options it is a matrix pass"));
        };
        let host = host::table()?;
        let mut given = HlrcStr {
            data: std::ptr::null(),
            len: 0,
        };
        // SAFETY: functions of the host, by the interface, here and below; the text lives until the call
        // ends.
        let source = unsafe {
            check((host.module_text)(context(), &mut given))?;
            text(given)?
        };
        let mut module = parse(source).map_err(PassError::new)?;
        let mut remarks = Vec::new();
        let uses = pass.calibration() != Calibration::Unused && host::has_statistics(host);
        let done = pass.run(&mut Rewrite {
            module: &module,
            seed: host::seed()?,
            statistics: uses.then_some(&OfHost),
            remarks: &mut remarks,
        });
        host::remarks(&remarks)?;
        let patch = done?;
        if patch.is_empty() {
            return Ok(HLRC_OK);
        }
        patch.apply(&mut module).map_err(PassError::new)?;
        let made = print(&module);
        // SAFETY: as above.
        check(unsafe { (host.module_set_text)(context(), lend(&made)) })?;
        Ok(HLRC_OK)
    })
}
