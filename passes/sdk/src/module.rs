//! A module pass behind the function that the host calls.
#![allow(unsafe_code)]

use hlrc_pass_abi::*;

use crate::export::{guard, instance};
use crate::host::{self, check, context};
use crate::ir::text::{parse, print};
use crate::pass::borrow::{lend, text};
use crate::pass::{Pass, PassError};

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
        let done = pass.run(&module, &mut remarks);
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
