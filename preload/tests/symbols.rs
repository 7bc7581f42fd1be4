//! The table of symbols, against the object that was built and the libibverbs that is installed.

mod common;

use common::library::{Library, Verbs, errno};
use sojourn_preload::NAMES;
use std::collections::BTreeSet;
use std::ptr::{null, null_mut};

/// What drivers alone call, though it is exported: no program has any of it.
const OF_DRIVERS: &[&str] =
    &["ibv_cmd_", "ibv_dmabuf_heap_", "ibv_read_ibdev_sysfs_file", "ibv_wr_opcode_str"];

/// Promise: every name of the table is a symbol that our object itself defines; and it defines no
/// other of libibverbs.
#[test]
fn every_name_is_exported() {
    let path = common::object();
    let ours = Library::open(path.to_str().unwrap()).unwrap();
    for name in NAMES {
        let address = ours.symbol(name);
        assert!(!address.is_null(), "{name} is not exported");
        assert_eq!(Library::file_of(address), path.to_str().unwrap(), "{name}");
    }
    let names: BTreeSet<_> = NAMES.iter().copied().collect();
    assert_eq!(names.len(), NAMES.len(), "a name stands twice in the table");
    for name in ["ibv_cmd_create_qp", "verbs_set_ops", "ibv_no_such_verb"] {
        assert!(ours.symbol(name).is_null(), "{name} is the drivers' business");
    }
}

/// Every text in a file that could be the name of a verb.
fn candidates(file: &[u8]) -> BTreeSet<&str> {
    let texts = file.split(|byte| *byte == 0).filter_map(|text| std::str::from_utf8(text).ok());
    let verb = |text: &&str| {
        let name = text.strip_prefix('_').unwrap_or(text);
        (name.starts_with("ibv_") || name.ends_with("_ibv_rate"))
            && name.bytes().all(|byte| byte == b'_' || byte.is_ascii_alphanumeric())
    };
    texts.filter(verb).collect()
}

/// Promise: no public function of libibverbs is missing. A missing one would be called in the real
/// library, with an object of ours, and crash there.
#[test]
fn no_public_name_of_the_installed_library_is_missing() {
    let Some(real) = Library::open("libibverbs.so.1") else {
        assert!(!common::installed("ibv_devices"), "a program without its library");
        return;
    };
    let file = std::fs::read(Library::file_of(real.symbol("ibv_open_device"))).unwrap();
    let exported: Vec<&str> =
        candidates(&file).into_iter().filter(|name| !real.symbol(name).is_null()).collect();
    assert!(exported.len() > 70, "this is no symbol table: {exported:?}");
    let missing: Vec<_> = exported
        .into_iter()
        .filter(|name| !NAMES.contains(name))
        .filter(|name| !OF_DRIVERS.iter().any(|theirs| name.starts_with(theirs)))
        .collect();
    assert!(missing.is_empty(), "not in the table: {missing:?}");
}

/// Promise: what is not served says `EOPNOTSUPP` in the way of its kind, also where it is given
/// nothing; what is served refuses nothing with `EINVAL`. Neither crashes.
#[test]
fn nothing_is_refused_politely() {
    let verbs = Verbs::ours();
    // SAFETY: throughout, null pointers are what these functions are asked to survive.
    unsafe {
        for status in [
            (verbs.ibv_attach_mcast)(null_mut(), null(), 0),
            (verbs.ibv_query_ece)(null_mut(), null_mut()),
            (verbs.ibv_query_port_speed)(null_mut(), 1, null_mut()),
            (verbs.ibv_resolve_eth_l2_from_gid)(null_mut(), null_mut(), null_mut(), null_mut()),
        ] {
            assert_eq!(status, libc::EOPNOTSUPP);
        }
        let refused = |what: &str, failed: bool| {
            assert!(failed && errno() == libc::EOPNOTSUPP, "{what}: errno {}", errno());
            *libc::__errno_location() = 0;
        };
        *libc::__errno_location() = 0;
        refused("mr", (verbs.ibv_reg_dmabuf_mr)(null_mut(), 0, 1, 0, 0, 0).is_null());
        refused("device", (verbs.ibv_import_device)(0).is_null());
        refused("pd", (verbs.ibv_import_pd)(null_mut(), 0).is_null());
        refused("counter", (verbs.ibv_create_comp_cntr)(null_mut(), null_mut()).is_null());
        refused("fd", (verbs.ibv_dm_export_dmabuf_fd)(null_mut()) == -1);
        let rereg = (verbs.ibv_rereg_mr)(null_mut(), 0, null_mut(), null_mut(), 0, 0);
        refused("rereg", rereg == -1);

        assert_eq!((verbs.ibv_dealloc_pd)(null_mut()), libc::EINVAL);
        assert!((verbs.ibv_alloc_pd)(null_mut()).is_null() && errno() == libc::EINVAL);
        assert!((verbs.ibv_open_device)(null_mut()).is_null() && errno() == libc::EINVAL);
        (verbs.ibv_free_device_list)(null_mut());
    }
}
