//! The mechanisms that a token advertises, as raw numbers.
//!
//! `cryptoki` leaves out those that it has no name for, silently; a report must not. This is the second of the two places
//! in the workspace with `unsafe`.
#![allow(unsafe_code)]

use cryptoki::slot::Slot;
use cryptoki_sys::{CK_FUNCTION_LIST, CKR_OK};
use std::path::Path;

/// More than any token has.
const MECHANISMS_MAX: usize = 65_536;

/// `C_GetMechanismList` of a slot in a module that this process has initialised.
pub(super) fn mechanisms(module: &Path, slot: Slot) -> Result<Vec<u64>, String> {
    // SAFETY: the library is loaded in this process already, so this takes one more reference to it; its
    // initialisers don't run again. It is dropped at the end, when nothing of it is in use any more.
    let library = unsafe { cryptoki_sys::Pkcs11::new(module) }.map_err(|error| error.to_string())?;
    if let Err(error) = &library.C_GetFunctionList {
        return Err(error.to_string());
    }
    let mut list: *mut CK_FUNCTION_LIST = core::ptr::null_mut();
    // SAFETY: the symbol is there (checked above), and `list` outlives the call.
    let rv = unsafe { library.C_GetFunctionList(&raw mut list) };
    if rv != CKR_OK || list.is_null() {
        return Err(format!("C_GetFunctionList: error {rv:#x}"));
    }
    // SAFETY: the module has just given this pointer out, as that of its list, which lives as long as the module.
    let functions = unsafe { *list };
    let Some(get) = functions.C_GetMechanismList else {
        return Err("the module has no C_GetMechanismList".to_owned());
    };
    let mut count = 0;
    // SAFETY: a null list asks for the count only (PKCS#11 2.40, 5.2); `count` outlives the call.
    let rv = unsafe { get(slot.into(), core::ptr::null_mut(), &raw mut count) };
    let room = usize::try_from(count).unwrap_or(usize::MAX);
    if rv != CKR_OK || room > MECHANISMS_MAX {
        return Err(format!("C_GetMechanismList: error {rv:#x}, {count} mechanisms"));
    }
    let mut mechanisms = vec![0; room];
    // SAFETY: the list has room for `count` numbers, which is what `count` tells the module.
    let rv = unsafe { get(slot.into(), mechanisms.as_mut_ptr(), &raw mut count) };
    if rv != CKR_OK {
        return Err(format!("C_GetMechanismList: error {rv:#x}"));
    }
    mechanisms.truncate(usize::try_from(count).unwrap_or(0));
    mechanisms.sort_unstable();
    Ok(mechanisms)
}
