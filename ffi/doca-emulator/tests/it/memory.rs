//! Claims about devices, memory maps, inventories and bufs.

use std::ffi::{CStr, c_void};
use std::ptr;

use crate::rig::c::*;
use crate::rig::*;
use doca_emulator::{Config, configure_thread};

#[test]
fn the_default_card_is_a_bluefield_3_at_03_00_0() {
    let device = Device::open("");
    let info = device.info();
    unsafe {
        let mut text = [0; 64];
        ok(doca_devinfo_get_pci_addr_str(info, text.as_mut_ptr()));
        assert_eq!(CStr::from_ptr(text.as_ptr()), c"0000:03:00.0");
        ok(doca_devinfo_get_ibdev_name(info, text.as_mut_ptr(), 64));
        assert_eq!(CStr::from_ptr(text.as_ptr()), c"mlx5_0");
        ok(doca_devinfo_get_iface_name(info, text.as_mut_ptr(), 64));
        assert_eq!(CStr::from_ptr(text.as_ptr()), c"p0");
        assert_eq!(doca_devinfo_get_iface_name(info, text.as_mut_ptr(), 2), E::DOCA_ERROR_INVALID_VALUE);

        assert_eq!(doca_compress_cap_task_compress_deflate_is_supported(info), E::DOCA_ERROR_NOT_SUPPORTED);
        ok(doca_compress_cap_task_decompress_deflate_is_supported(info));
        ok(doca_compress_cap_task_decompress_lz4_stream_is_supported(info));
        ok(doca_compress_cap_task_decompress_lz4_block_is_supported(info));
        let bytes = out(|max| doca_compress_cap_task_decompress_deflate_get_max_buf_size(info, max));
        assert_eq!(bytes, Ok(2 << 20));
        let list = out(|max| doca_compress_cap_task_decompress_deflate_get_max_buf_list_len(info, max));
        assert_eq!(list, Ok(128));
        ok(doca_dma_cap_task_memcpy_is_supported(info));
    }
}

#[test]
fn a_bluefield_2_deflates_both_ways_and_knows_no_lz4() {
    let device = Device::open("profile=bf2");
    let info = device.info();
    unsafe {
        ok(doca_compress_cap_task_compress_deflate_is_supported(info));
        let bytes = out(|max| doca_compress_cap_task_decompress_deflate_get_max_buf_size(info, max));
        assert_eq!(bytes, Ok(128 << 20));
        let unsupported = doca_compress_cap_task_decompress_lz4_block_is_supported(info);
        assert_eq!(unsupported, E::DOCA_ERROR_NOT_SUPPORTED);
    }
}

#[test]
fn pci_addresses_match_with_and_without_domain() {
    let device = Device::open("");
    let is_equal =
        |address: &CStr| out(|equal| unsafe { doca_devinfo_is_equal_pci_addr(device.info(), address.as_ptr(), equal) });
    assert_eq!(is_equal(c"03:00.0"), Ok(1));
    assert_eq!(is_equal(c"0000:03:00.0"), Ok(1));
    assert_eq!(is_equal(c"03:00.1"), Ok(0));
    assert_eq!(is_equal(c"mlx5_0"), Err(E::DOCA_ERROR_INVALID_VALUE));
}

#[test]
fn a_host_may_see_the_card_at_any_function() {
    let device = Device::open("role=host,pci=b1:00.1");
    let is_equal =
        |address: &CStr| out(|equal| unsafe { doca_devinfo_is_equal_pci_addr(device.info(), address.as_ptr(), equal) });
    assert_eq!((is_equal(c"b1:00.1"), is_equal(c"b1:00.0")), (Ok(1), Ok(0)));
}

#[test]
fn a_card_may_show_several_functions_or_none() {
    for wanted in [0, 2] {
        configure_thread(Config { devices: wanted, ..Config::default() });
        let mut count = 99;
        let list = out(|list| unsafe { doca_devinfo_create_list(list, &mut count) }).expect("a list");
        assert_eq!(count, wanted);
        ok(unsafe { doca_devinfo_destroy_list(list) });
    }
    configure_thread(None);
}

#[test]
fn null_and_foreign_handles_are_invalid_values() {
    let device = Device::open("");
    unsafe {
        assert_eq!(doca_pe_create(ptr::null_mut()), E::DOCA_ERROR_INVALID_VALUE);
        assert_eq!(doca_mmap_destroy(ptr::null_mut()), E::DOCA_ERROR_INVALID_VALUE);
        assert_eq!(doca_mmap_destroy(device.0.cast()), E::DOCA_ERROR_INVALID_VALUE);
        assert_eq!(doca_pe_progress(ptr::null_mut()), 0);
        assert!(doca_dma_as_ctx(ptr::null_mut()).is_null());
        let dma = out(|dma| doca_dma_create(device.0, dma)).expect("a dma context");
        assert_eq!(doca_compress_destroy(dma.cast()), E::DOCA_ERROR_INVALID_VALUE, "a dma is no compress");
        ok(doca_dma_destroy(dma));
    }
}

#[test]
fn a_device_in_use_does_not_close() {
    let device = Device::open("");
    let memory = Memory::zeroed(&device, 64);
    assert_eq!(unsafe { doca_dev_close(device.0) }, E::DOCA_ERROR_IN_USE);
    drop(memory);
}

#[test]
fn an_mmap_takes_its_settings_before_start_and_once() {
    let device = Device::open("");
    let other = Device::open("");
    let mut bytes = [0u8; 256];
    let first: *mut c_void = bytes.as_mut_ptr().cast();
    unsafe {
        let mmap = out(|mmap| doca_mmap_create(mmap)).expect("an mmap");
        assert_eq!(doca_mmap_start(mmap), E::DOCA_ERROR_INVALID_VALUE, "no range yet");
        let range = out(|range| doca_mmap_get_memrange(mmap, range, &mut 0));
        assert_eq!(range, Err(E::DOCA_ERROR_BAD_STATE));
        ok(doca_mmap_add_dev(mmap, device.0));
        assert_eq!(doca_mmap_add_dev(mmap, device.0), E::DOCA_ERROR_ALREADY_EXIST);
        assert_eq!(doca_mmap_rm_dev(mmap, other.0), E::DOCA_ERROR_NOT_FOUND);
        assert_eq!(doca_mmap_set_permissions(mmap, PCI_RO | PCI_RW), E::DOCA_ERROR_INVALID_VALUE);
        assert_eq!(doca_mmap_set_permissions(mmap, 1 << 9), E::DOCA_ERROR_INVALID_VALUE);
        ok(doca_mmap_set_permissions(mmap, LOCAL_RW));
        assert_eq!(doca_mmap_set_memrange(mmap, first, usize::MAX), E::DOCA_ERROR_INVALID_VALUE);
        ok(doca_mmap_set_memrange(mmap, first, 256));
        assert_eq!(doca_mmap_set_memrange(mmap, first, 128), E::DOCA_ERROR_NOT_PERMITTED);
        ok(doca_mmap_enable_thread_safety(mmap));
        ok(doca_mmap_set_user_data(mmap, number(77)));
        ok(doca_mmap_start(mmap));

        assert_eq!(doca_mmap_add_dev(mmap, other.0), E::DOCA_ERROR_NOT_PERMITTED);
        assert_eq!(doca_mmap_set_permissions(mmap, LOCAL_RW), E::DOCA_ERROR_BAD_STATE);
        assert_eq!(doca_mmap_set_memrange(mmap, first, 256), E::DOCA_ERROR_BAD_STATE);
        assert_eq!(doca_mmap_set_max_num_devices(mmap, 9), E::DOCA_ERROR_NOT_PERMITTED);
        assert_eq!(doca_mmap_enable_thread_safety(mmap), E::DOCA_ERROR_NOT_PERMITTED);
        assert_eq!(out(|data| doca_mmap_get_user_data(mmap, data)).map(|data| data.u64_), Ok(77));
        ok(doca_mmap_stop(mmap));
        ok(doca_mmap_start(mmap));
        ok(doca_mmap_destroy(mmap));
    }
}

#[test]
fn an_mmap_has_room_for_so_many_devices() {
    let (device, other) = (Device::open(""), Device::open(""));
    unsafe {
        let mmap = out(|mmap| doca_mmap_create(mmap)).expect("an mmap");
        ok(doca_mmap_set_max_num_devices(mmap, 1));
        ok(doca_mmap_add_dev(mmap, device.0));
        assert_eq!(doca_mmap_add_dev(mmap, other.0), E::DOCA_ERROR_NO_MEMORY);
        ok(doca_mmap_destroy(mmap));
    }
}

#[test]
fn the_free_callback_gets_range_and_cookie_at_destroy() {
    unsafe extern "C" fn freed(addr: *mut c_void, len: usize, cookie: *mut c_void) {
        unsafe { *cookie.cast::<(*mut c_void, usize)>() = (addr, len) };
    }
    let mut bytes = [0u8; 32];
    let first: *mut c_void = bytes.as_mut_ptr().cast();
    let mut seen: (*mut c_void, usize) = (ptr::null_mut(), 0);
    unsafe {
        let mmap = out(|mmap| doca_mmap_create(mmap)).expect("an mmap");
        ok(doca_mmap_set_memrange(mmap, first, 32));
        ok(doca_mmap_set_free_cb(mmap, Some(freed), (&raw mut seen).cast()));
        ok(doca_mmap_start(mmap));
        ok(doca_mmap_destroy(mmap));
    }
    assert_eq!(seen, (first, 32));
}

#[test]
fn export_wants_a_started_mmap_a_pci_flag_and_a_device_of_it() {
    let (device, other) = (Device::open(""), Device::open(""));
    let local = Memory::zeroed(&device, 64);
    assert_eq!(local.blob(&device), Err(E::DOCA_ERROR_NOT_PERMITTED), "no pci flag");
    let memory = Memory::with_access(&device, &[0; 64], PCI_RW);
    assert_eq!(memory.blob(&other), Err(E::DOCA_ERROR_NOT_FOUND), "not a device of it");
    memory.blob(&device).expect("a blob");
    assert_eq!(out(|flag| unsafe { doca_mmap_get_exported(memory.mmap, flag) }), Ok(1));
    ok(unsafe { doca_mmap_stop(memory.mmap) });
    assert_eq!(memory.blob(&device), Err(E::DOCA_ERROR_NOT_PERMITTED), "stopped");
}

#[test]
fn an_import_is_started_fixed_and_uses_the_exporters_addresses() {
    let (device, other) = (Device::open(""), Device::open(""));
    let memory = Memory::with_access(&device, &[0; 64], PCI_RW);
    let import = Memory::import(&other, &memory.blob(&device).expect("a blob")).expect("an import");
    assert_eq!((import.first, import.len), (memory.first, memory.len));
    assert_eq!(out(|flag| unsafe { doca_mmap_get_from_export(import.mmap, flag) }), Ok(1));
    unsafe {
        assert_eq!(doca_mmap_set_permissions(import.mmap, PCI_RW), E::DOCA_ERROR_NOT_PERMITTED);
        assert_eq!(doca_mmap_add_dev(import.mmap, device.0), E::DOCA_ERROR_NOT_PERMITTED);
        assert_eq!(doca_mmap_start(import.mmap), E::DOCA_ERROR_NOT_PERMITTED);
        assert_eq!(doca_mmap_stop(import.mmap), E::DOCA_ERROR_NOT_PERMITTED);
    }
    assert_eq!(import.blob(&other), Err(E::DOCA_ERROR_NOT_PERMITTED));
}

#[test]
fn garbage_is_no_blob_and_a_stopped_export_is_gone() {
    let device = Device::open("");
    let memory = Memory::with_access(&device, &[0; 64], PCI_RW);
    let blob = memory.blob(&device).expect("a blob");
    let mut torn = blob.clone();
    torn[40] ^= 1;
    assert_eq!(Memory::import(&device, &torn).err(), Some(E::DOCA_ERROR_INVALID_VALUE));
    assert_eq!(Memory::import(&device, &blob[..64]).err(), Some(E::DOCA_ERROR_INVALID_VALUE));
    assert_eq!(Memory::import(&device, &[]).err(), Some(E::DOCA_ERROR_INVALID_VALUE));
    ok(unsafe { doca_mmap_stop(memory.mmap) });
    assert_eq!(Memory::import(&device, &blob).err(), Some(E::DOCA_ERROR_DRIVER));
}

#[test]
fn a_blob_is_its_mmaps_own_and_goes_with_it() {
    let device = Device::open("");
    let memory = Memory::with_access(&device, &[0; 64], PCI_RW);
    let place = || out(|blob| unsafe { doca_mmap_export_pci(memory.mmap, device.0, blob, &mut 0) }).expect("a blob");
    assert_eq!(place(), place(), "one blob, which nobody else frees");
    let blob = memory.blob(&device).expect("a blob");
    drop(memory);
    assert_eq!(Memory::import(&device, &blob).err(), Some(E::DOCA_ERROR_DRIVER));
}

#[test]
fn an_import_with_bufs_does_not_go() {
    let (device, inventory) = (Device::open(""), Inventory::new(1));
    let memory = Memory::with_access(&device, &[0; 64], PCI_RW);
    let import = Memory::import(&device, &memory.blob(&device).expect("a blob")).expect("an import");
    let buf = inventory.source(&import, 0, 64);
    assert_eq!(unsafe { doca_mmap_destroy(import.mmap) }, E::DOCA_ERROR_NOT_PERMITTED);
    give_back(buf);
}

#[test]
fn a_dmabuf_is_not_supported_and_says_so() {
    let mut byte = 0u8;
    let place: *mut c_void = (&raw mut byte).cast();
    unsafe {
        let mmap = out(|mmap| doca_mmap_create(mmap)).expect("an mmap");
        assert_eq!(doca_mmap_set_dmabuf_memrange(mmap, 0, place, 0, 1), E::DOCA_ERROR_NOT_SUPPORTED);
        ok(doca_mmap_destroy(mmap));
    }
}

#[test]
fn codes_have_the_numbers_of_the_sdk_and_user_data_is_a_word() {
    let some = [
        (E::DOCA_SUCCESS, 0),
        (E::DOCA_ERROR_UNKNOWN, 1),
        (E::DOCA_ERROR_NOT_PERMITTED, 2),
        (E::DOCA_ERROR_IN_USE, 3),
        (E::DOCA_ERROR_NOT_SUPPORTED, 4),
        (E::DOCA_ERROR_AGAIN, 5),
        (E::DOCA_ERROR_INVALID_VALUE, 6),
        (E::DOCA_ERROR_NO_MEMORY, 7),
        (E::DOCA_ERROR_INITIALIZATION, 8),
        (E::DOCA_ERROR_SHUTDOWN, 10),
        (E::DOCA_ERROR_CONNECTION_RESET, 11),
        (E::DOCA_ERROR_NOT_CONNECTED, 14),
        (E::DOCA_ERROR_NOT_FOUND, 16),
        (E::DOCA_ERROR_IO_FAILED, 17),
        (E::DOCA_ERROR_BAD_STATE, 18),
        (E::DOCA_ERROR_UNSUPPORTED_VERSION, 19),
        (E::DOCA_ERROR_DRIVER, 21),
        (E::DOCA_ERROR_ALREADY_EXIST, 23),
        (E::DOCA_ERROR_FULL, 24),
        (E::DOCA_ERROR_IN_PROGRESS, 26),
        (E::DOCA_ERROR_TOO_BIG, 27),
        (E::DOCA_ERROR_SKIPPED, 30),
    ];
    some.into_iter().for_each(|(code, number)| assert_eq!(code.0, number));
    assert_eq!(size_of::<doca_data>(), 8);
}

#[test]
fn an_mmap_with_bufs_neither_stops_nor_goes() {
    let device = Device::open("");
    let (memory, inventory) = (Memory::zeroed(&device, 64), Inventory::new(2));
    let buf = inventory.source(&memory, 0, 64);
    assert_eq!(memory.bufs(), 1);
    unsafe {
        assert_eq!(doca_mmap_stop(memory.mmap), E::DOCA_ERROR_NOT_PERMITTED);
        assert_eq!(doca_mmap_destroy(memory.mmap), E::DOCA_ERROR_NOT_PERMITTED);
    }
    give_back(buf);
    assert_eq!(memory.bufs(), 0);
}

#[test]
fn a_buf_lies_inside_its_mmap_and_its_data_inside_the_buf() {
    let device = Device::open("");
    let (memory, inventory) = (Memory::zeroed(&device, 64), Inventory::new(1));
    assert_eq!(inventory.get(&memory, 1, 64, 0), Err(E::DOCA_ERROR_INVALID_VALUE));
    assert_eq!(inventory.get(&memory, 0, 65, 0), Err(E::DOCA_ERROR_INVALID_VALUE));
    assert_eq!(inventory.get(&memory, 0, 8, 9), Err(E::DOCA_ERROR_INVALID_VALUE));
    let buf = inventory.get(&memory, 8, 16, 4).expect("a buf");
    unsafe {
        assert_eq!(out(|head| doca_buf_get_head(buf, head)), Ok(memory.at(8)));
        assert_eq!(out(|len| doca_buf_get_len(buf, len)), Ok(16));
        assert_eq!(doca_buf_set_data(buf, memory.at(7), 1), E::DOCA_ERROR_INVALID_VALUE);
        assert_eq!(doca_buf_set_data(buf, memory.at(20), 5), E::DOCA_ERROR_INVALID_VALUE);
        ok(doca_buf_set_data(buf, memory.at(20), 4));
        assert_eq!(doca_buf_set_data_len(buf, 5), E::DOCA_ERROR_INVALID_VALUE);
        ok(doca_buf_reset_data_len(buf));
        assert_eq!(out(|data| doca_buf_get_data(buf, data)), Ok(memory.at(20)));
    }
    assert_eq!(data_len(buf), 0);
    give_back(buf);
}

#[test]
fn an_inventory_runs_out_and_refills() {
    let device = Device::open("");
    let (memory, inventory) = (Memory::zeroed(&device, 64), Inventory::new(2));
    let bufs = [inventory.source(&memory, 0, 8), inventory.source(&memory, 8, 8)];
    assert_eq!(inventory.get(&memory, 0, 8, 0), Err(E::DOCA_ERROR_NO_MEMORY));
    assert_eq!(unsafe { doca_buf_inventory_destroy(inventory.0) }, E::DOCA_ERROR_IN_USE);
    ok(unsafe { doca_buf_inventory_expand(inventory.0, 1) });
    let third = inventory.source(&memory, 0, 8);
    bufs.into_iter().chain([third]).for_each(give_back);
    assert_eq!(inventory.free(), 3);
    ok(unsafe { doca_buf_inventory_stop(inventory.0) });
    assert_eq!(inventory.get(&memory, 0, 8, 0), Err(E::DOCA_ERROR_BAD_STATE));
}

#[test]
fn reference_counts_report_the_value_before() {
    let device = Device::open("");
    let (memory, inventory) = (Memory::zeroed(&device, 64), Inventory::new(1));
    let buf = inventory.source(&memory, 0, 8);
    unsafe {
        assert_eq!(out(|count| doca_buf_get_refcount(buf, count)), Ok(1));
        assert_eq!(out(|before| doca_buf_inc_refcount(buf, before)), Ok(1));
        assert_eq!(out(|before| doca_buf_dec_refcount(buf, before)), Ok(2));
        assert_eq!(out(|before| doca_buf_dec_refcount(buf, before)), Ok(1));
        assert_eq!(doca_buf_dec_refcount(buf, ptr::null_mut()), E::DOCA_ERROR_BAD_STATE);
    }
    assert_eq!(inventory.free(), 1);
}

#[test]
fn lists_chain_unchain_and_go_home_with_their_head() {
    let device = Device::open("");
    let (memory, inventory) = (Memory::zeroed(&device, 64), Inventory::new(5));
    let bufs: Vec<_> = (0..5).map(|i| inventory.source(&memory, 8 * i, 8)).collect();
    let len = |buf| out(|len| unsafe { doca_buf_get_list_len(buf, len) });
    unsafe {
        inventory.chain(&bufs[..3]);
        inventory.chain(&bufs[3..]);
        ok(doca_buf_chain_list(bufs[0], bufs[3]));
        assert_eq!(len(bufs[0]), Ok(5));
        assert_eq!(len(bufs[1]), Err(E::DOCA_ERROR_NOT_PERMITTED), "not a head");
        assert_eq!(out(|last| doca_buf_get_last_in_list(bufs[0], last)), Ok(bufs[4]));
        assert_eq!(out(|next| doca_buf_get_next_in_list(bufs[1], next)), Ok(bufs[2]));
        assert_eq!(doca_buf_chain_list(bufs[0], bufs[2]), E::DOCA_ERROR_NOT_PERMITTED, "already a follower");
        assert_eq!(doca_buf_chain_list(bufs[0], bufs[0]), E::DOCA_ERROR_INVALID_VALUE, "a loop");
        assert_eq!(doca_buf_dec_refcount(bufs[1], ptr::null_mut()), E::DOCA_ERROR_NOT_PERMITTED);
        assert_eq!(doca_buf_inc_refcount(bufs[1], ptr::null_mut()), E::DOCA_ERROR_NOT_PERMITTED);
        assert_eq!(out(|flag| doca_buf_is_first_in_list(bufs[0], flag)), Ok(1));
        assert_eq!(out(|flag| doca_buf_is_last_in_list(bufs[0], flag)), Ok(0));
        assert_eq!(out(|flag| doca_buf_is_in_list(bufs[4], flag)), Ok(1));

        ok(doca_buf_unchain_list(bufs[0], bufs[2]));
        assert_eq!((len(bufs[0]), len(bufs[2])), (Ok(2), Ok(3)));
        assert_eq!(doca_buf_unchain_list(bufs[0], bufs[4]), E::DOCA_ERROR_INVALID_VALUE);
    }
    give_back(bufs[2]);
    assert_eq!(inventory.free(), 3);
    give_back(bufs[0]);
    assert_eq!(inventory.free(), 5);
}

#[test]
fn a_list_with_references_elsewhere_does_not_join_another() {
    let device = Device::open("");
    let (memory, inventory) = (Memory::zeroed(&device, 64), Inventory::new(2));
    let bufs = [inventory.source(&memory, 0, 8), inventory.source(&memory, 8, 8)];
    ok(unsafe { doca_buf_inc_refcount(bufs[1], ptr::null_mut()) });
    assert_eq!(unsafe { doca_buf_chain_list(bufs[0], bufs[1]) }, E::DOCA_ERROR_NOT_PERMITTED);
    give_back(bufs[1]);
    bufs.into_iter().for_each(give_back);
}

#[test]
fn a_duplicate_copies_the_whole_list_or_nothing() {
    let device = Device::open("");
    let (memory, inventory) = (Memory::zeroed(&device, 64), Inventory::new(5));
    let bufs: Vec<_> = (0..2).map(|i| inventory.get(&memory, 8 * i, 8, 3).expect("a buf")).collect();
    let head = inventory.chain(&bufs);
    let duplicate = |buf| out(|copy| unsafe { doca_buf_inventory_buf_dup(inventory.0, buf, copy) });
    let copy = duplicate(head).expect("a copy");
    assert_eq!(data_len(copy), 3);
    assert_eq!(out(|len| unsafe { doca_buf_get_list_len(copy, len) }), Ok(2));
    assert_eq!(duplicate(head), Err(E::DOCA_ERROR_NO_MEMORY));
    assert_eq!(inventory.free(), 1);
    assert_eq!(duplicate(bufs[1]), Err(E::DOCA_ERROR_NOT_PERMITTED), "not a head");
    give_back(copy);
    give_back(head);
}

#[test]
fn a_buf_needs_a_started_mmap() {
    let inventory = Inventory::new(1);
    unsafe {
        let mmap = out(|mmap| doca_mmap_create(mmap)).expect("an mmap");
        let mut bytes = [0u8; 8];
        let first: *mut c_void = bytes.as_mut_ptr().cast();
        let buf = out(|buf| doca_buf_inventory_buf_get_by_args(inventory.0, mmap, first, 8, first, 0, buf));
        assert_eq!(buf, Err(E::DOCA_ERROR_BAD_STATE));
        ok(doca_mmap_destroy(mmap));
    }
}
