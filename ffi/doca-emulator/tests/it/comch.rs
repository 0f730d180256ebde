//! Claims about DOCA Comch: a server and its clients, in one process, over real sockets.

#![cfg(not(miri))]

use std::cell::{Cell, RefCell};
use std::ffi::CString;
use std::rc::Rc;

use crate::rig::c::*;
use crate::rig::*;

const STARTING: doca_ctx_states = doca_ctx_states::DOCA_CTX_STATE_STARTING;

/// What the callbacks of one side saw. Its address is the context's user data.
#[derive(Default)]
struct Heard {
    messages: RefCell<Vec<(Vec<u8>, *mut doca_comch_connection)>>,
    joined: RefCell<Vec<*mut doca_comch_connection>>,
    left: Cell<usize>,
    sent: RefCell<Vec<(bool, doca_error)>>,
    consumers: RefCell<Vec<u32>>,
    expired: RefCell<Vec<u32>>,
    received: RefCell<Vec<(doca_error, usize, Vec<u8>)>>,
}

unsafe fn heard<'a>(ctx: *mut doca_ctx) -> &'a Heard {
    let data = out(|data| unsafe { doca_ctx_get_user_data(ctx, data) }).expect("user data");
    unsafe { &*data.ptr.cast::<Heard>() }
}

unsafe fn heard_of<'a>(connection: *mut doca_comch_connection) -> &'a Heard {
    unsafe {
        let server = doca_comch_server_get_server_ctx(connection);
        let client = doca_comch_client_get_client_ctx(connection);
        assert_ne!(server.is_null(), client.is_null(), "each connection has one side");
        heard(if server.is_null() { doca_comch_client_as_ctx(client) } else { doca_comch_server_as_ctx(server) })
    }
}

unsafe extern "C" fn message(
    _: *mut doca_comch_event_msg_recv,
    first: *mut u8,
    len: u32,
    connection: *mut doca_comch_connection,
) {
    unsafe {
        let bytes = std::slice::from_raw_parts(first, len as usize).to_vec();
        heard_of(connection).messages.borrow_mut().push((bytes, connection));
    }
}

unsafe extern "C" fn joined(
    _: *mut doca_comch_event_connection_status_changed,
    connection: *mut doca_comch_connection,
    ok: u8,
) {
    assert_eq!(ok, 1);
    unsafe { heard_of(connection) }.joined.borrow_mut().push(connection);
}

unsafe extern "C" fn left(
    _: *mut doca_comch_event_connection_status_changed,
    connection: *mut doca_comch_connection,
    _: u8,
) {
    let heard = unsafe { heard_of(connection) };
    heard.left.set(heard.left.get() + 1);
}

unsafe extern "C" fn consumer(_: *mut doca_comch_event_consumer, connection: *mut doca_comch_connection, id: u32) {
    unsafe { heard_of(connection) }.consumers.borrow_mut().push(id);
}

unsafe extern "C" fn expired(_: *mut doca_comch_event_consumer, connection: *mut doca_comch_connection, id: u32) {
    unsafe { heard_of(connection) }.expired.borrow_mut().push(id);
}

unsafe fn sent(task: *mut doca_task, ctx_data: doca_data, well: bool) {
    unsafe {
        let status = doca_task_get_status(task);
        (*ctx_data.ptr.cast::<Heard>()).sent.borrow_mut().push((well, status));
        doca_task_free(task);
    }
}

unsafe extern "C" fn send_done(task: *mut doca_comch_task_send, _: doca_data, data: doca_data) {
    unsafe { sent(task.cast(), data, true) }
}

unsafe extern "C" fn send_failed(task: *mut doca_comch_task_send, _: doca_data, data: doca_data) {
    unsafe { sent(task.cast(), data, false) }
}

unsafe extern "C" fn data_done(task: *mut doca_comch_producer_task_send, _: doca_data, data: doca_data) {
    unsafe { sent(task.cast(), data, true) }
}

unsafe extern "C" fn data_failed(task: *mut doca_comch_producer_task_send, _: doca_data, data: doca_data) {
    unsafe { sent(task.cast(), data, false) }
}

unsafe extern "C" fn received(task: *mut doca_comch_consumer_task_post_recv, _: doca_data, data: doca_data) {
    unsafe {
        let plain = doca_comch_consumer_task_post_recv_as_task(task);
        let buf = doca_comch_consumer_task_post_recv_get_buf(task);
        let imm_len = doca_comch_consumer_task_post_recv_get_imm_data_len(task) as usize;
        let imm = doca_comch_consumer_task_post_recv_get_imm_data(task);
        let imm = if imm_len == 0 { Vec::new() } else { std::slice::from_raw_parts(imm, imm_len).to_vec() };
        let what = (doca_task_get_status(plain), data_len(buf), imm);
        (*data.ptr.cast::<Heard>()).received.borrow_mut().push(what);
        doca_task_free(plain);
        give_back(buf);
    }
}

struct Server {
    raw: *mut doca_comch_server,
    rep: *mut doca_dev_rep,
    heard: Rc<Heard>,
}

fn name(text: &str) -> CString {
    CString::new(text).expect("no zeroes")
}

/// All representors of a device, opened.
fn representors(device: &Device) -> Vec<*mut doca_dev_rep> {
    unsafe {
        let mut count = 0;
        let filter = doca_devinfo_rep_filter::DOCA_DEVINFO_REP_FILTER_NET.0 as i32;
        let list = out(|list| doca_devinfo_rep_create_list(device.0, filter, list, &mut count)).expect("a list");
        assert!((*list.add(count as usize)).is_null(), "a list ends with a null");
        let reps = (0..count as usize).map(|i| out(|rep| doca_dev_rep_open(*list.add(i), rep)).expect("a representor"));
        let reps = reps.collect();
        ok(doca_devinfo_rep_destroy_list(list));
        reps
    }
}

fn representor(device: &Device) -> *mut doca_dev_rep {
    let reps = representors(device);
    assert_eq!(reps.len(), 1);
    reps[0]
}

impl Server {
    fn create(device: &Device, engine: &Engine, called: &str, queue: u32) -> Server {
        Server::create_for(representor(device), device, engine, called, queue)
    }

    fn create_for(rep: *mut doca_dev_rep, device: &Device, engine: &Engine, called: &str, queue: u32) -> Server {
        unsafe {
            let called = name(called);
            let raw = out(|server| doca_comch_server_create(device.0, rep, called.as_ptr(), server)).expect("a server");
            let ctx = doca_comch_server_as_ctx(raw);
            let heard = Rc::new(Heard::default());
            ok(doca_pe_connect_ctx(engine.0, ctx));
            ok(doca_comch_server_task_send_set_conf(raw, Some(send_done), Some(send_failed), 16));
            ok(doca_comch_server_event_msg_recv_register(raw, Some(message)));
            ok(doca_comch_server_event_connection_status_changed_register(raw, Some(joined), Some(left)));
            ok(doca_comch_server_event_consumer_register(raw, Some(consumer), Some(expired)));
            ok(doca_comch_server_set_recv_queue_size(raw, queue));
            ok(doca_ctx_set_user_data(ctx, doca_data { ptr: Rc::as_ptr(&heard).cast_mut().cast() }));
            Server { raw, rep, heard }
        }
    }

    fn new(device: &Device, engine: &Engine, called: &str) -> Server {
        let server = Server::create(device, engine, called, 4);
        ok(unsafe { doca_ctx_start(server.ctx()) });
        server
    }

    fn ctx(&self) -> *mut doca_ctx {
        unsafe { doca_comch_server_as_ctx(self.raw) }
    }

    fn send(&self, to: *mut doca_comch_connection, bytes: &[u8]) -> Result<(), doca_error> {
        unsafe {
            let task = out(|task| {
                doca_comch_server_task_send_alloc_init(self.raw, to, bytes.as_ptr().cast(), bytes.len() as u32, task)
            })?;
            submit(doca_comch_task_send_as_task(task))
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        unsafe {
            doca_ctx_stop(self.ctx());
            ok(doca_comch_server_destroy(self.raw));
            ok(doca_dev_rep_close(self.rep));
        }
    }
}

fn submit(task: *mut doca_task) -> Result<(), doca_error> {
    match unsafe { doca_task_submit(task) } {
        E::DOCA_SUCCESS => Ok(()),
        error => {
            unsafe { doca_task_free(task) };
            Err(error)
        }
    }
}

struct Client {
    raw: *mut doca_comch_client,
    heard: Rc<Heard>,
}

impl Client {
    fn create(device: &Device, engine: &Engine, called: &str) -> Client {
        unsafe {
            let called = name(called);
            let raw = out(|client| doca_comch_client_create(device.0, called.as_ptr(), client)).expect("a client");
            let ctx = doca_comch_client_as_ctx(raw);
            let heard = Rc::new(Heard::default());
            ok(doca_pe_connect_ctx(engine.0, ctx));
            ok(doca_comch_client_task_send_set_conf(raw, Some(send_done), Some(send_failed), 64));
            ok(doca_comch_client_event_msg_recv_register(raw, Some(message)));
            ok(doca_comch_client_event_consumer_register(raw, Some(consumer), Some(expired)));
            ok(doca_ctx_set_user_data(ctx, doca_data { ptr: Rc::as_ptr(&heard).cast_mut().cast() }));
            assert_eq!(doca_ctx_start(ctx), E::DOCA_ERROR_IN_PROGRESS);
            let client = Client { raw, heard };
            assert_eq!(client.state(), STARTING);
            client
        }
    }

    fn new(device: &Device, engine: &Engine, called: &str) -> Client {
        let client = Client::create(device, engine, called);
        engine.progress_until(|| client.state() == RUNNING);
        client
    }

    fn ctx(&self) -> *mut doca_ctx {
        unsafe { doca_comch_client_as_ctx(self.raw) }
    }

    fn state(&self) -> doca_ctx_states {
        out(|state| unsafe { doca_ctx_get_state(self.ctx(), state) }).expect("a state")
    }

    fn connection(&self) -> *mut doca_comch_connection {
        out(|place| unsafe { doca_comch_client_get_connection(self.raw, place) }).expect("a connection")
    }

    fn send(&self, bytes: &[u8]) -> Result<(), doca_error> {
        unsafe {
            let (to, first) = (self.connection(), bytes.as_ptr().cast());
            let task =
                out(|task| doca_comch_client_task_send_alloc_init(self.raw, to, first, bytes.len() as u32, task))?;
            submit(doca_comch_task_send_as_task(task))
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        unsafe {
            doca_ctx_stop(self.ctx());
            ok(doca_comch_client_destroy(self.raw));
        }
    }
}

/// A device whose servers and clients meet nobody else's.
fn device(more: &str) -> (Device, tempfile::TempDir) {
    let directory = tempfile::tempdir().expect("a directory");
    let device = Device::open(&format!("comch_dir={},{more}", directory.path().display()));
    (device, directory)
}

#[test]
fn messages_go_both_ways_in_order() {
    let (device, _directory) = device("");
    let engine = Engine::new();
    let server = Server::new(&device, &engine, "talk");
    let client = Client::new(&device, &engine, "talk");
    let texts: Vec<Vec<u8>> = (0..50u32).map(|i| sample(1 + i as usize * 80, i.into())).collect();
    texts.iter().for_each(|text| client.send(text).expect("sent"));
    engine.progress_until(|| server.heard.messages.borrow().len() == 50);
    let came = server.heard.messages.borrow();
    assert!(came.iter().map(|(text, _)| text).eq(&texts), "more than the window of 4, in order");
    server.send(came[0].1, b"answer").expect("sent");
    engine.progress_until(|| !client.heard.messages.borrow().is_empty());
    assert_eq!(client.heard.messages.borrow()[0].0, b"answer");
    engine.progress_until(|| client.heard.sent.borrow().len() == 50);
    assert!(client.heard.sent.borrow().iter().all(|(well, status)| *well && *status == E::DOCA_SUCCESS));
    let counted = |which| unsafe {
        ok(doca_comch_connection_update_info(client.connection()));
        out(|value| doca_comch_connection_get_counter(client.connection(), which, value)).expect("a counter")
    };
    assert_eq!(counted(doca_comch_counter::DOCA_COMCH_COUNTER_SENT_MESSAGES), 50);
    assert_eq!(counted(doca_comch_counter::DOCA_COMCH_COUNTER_RECV_BYTES), 6);
}

#[test]
fn a_message_over_the_limit_is_refused() {
    let (device, _directory) = device("");
    let engine = Engine::new();
    let _server = Server::new(&device, &engine, "limit");
    let client = Client::new(&device, &engine, "limit");
    let max = out(|size| unsafe { doca_comch_cap_get_max_msg_size(device.info(), size) }).expect("a size") as usize;
    assert_eq!(max, 4080);
    assert_eq!(client.send(&vec![0; max]), Ok(()));
    assert_eq!(client.send(&vec![0; max + 1]), Err(E::DOCA_ERROR_INVALID_VALUE));
    assert_eq!(client.send(&[]), Err(E::DOCA_ERROR_INVALID_VALUE));
    engine.progress_until(|| !client.heard.sent.borrow().is_empty());
}

#[test]
fn a_client_without_a_server_ends_idle() {
    let (device, _directory) = device("");
    let engine = Engine::new();
    let client = Client::create(&device, &engine, "nobody");
    engine.progress_until(|| client.state() == IDLE);
    assert_eq!(
        out(|place| unsafe { doca_comch_client_get_connection(client.raw, place) }),
        Err(E::DOCA_ERROR_BAD_STATE)
    );
}

#[test]
fn a_client_may_wait_for_its_server() {
    let (device, _directory) = device("comch_wait_ms=10000");
    let engine = Engine::new();
    let client = Client::create(&device, &engine, "late");
    std::thread::sleep(std::time::Duration::from_millis(30));
    let _server = Server::new(&device, &engine, "late");
    engine.progress_until(|| client.state() == RUNNING);
}

#[test]
fn a_second_server_of_the_same_name_is_refused() {
    let (device, _directory) = device("");
    let engine = Engine::new();
    let _first = Server::new(&device, &engine, "one");
    let second = Server::create(&device, &engine, "one", 4);
    assert_eq!(unsafe { doca_ctx_start(second.ctx()) }, E::DOCA_ERROR_ALREADY_EXIST);
    let _other = Server::new(&device, &engine, "two");
}

#[test]
fn clients_come_and_go_and_the_server_hears_it() {
    let (device, _directory) = device("");
    let engine = Engine::new();
    let server = Server::new(&device, &engine, "many");
    let clients: Vec<Client> = (0..5).map(|_| Client::new(&device, &engine, "many")).collect();
    engine.progress_until(|| server.heard.joined.borrow().len() == 5);
    clients[3].send(b"last words").expect("sent");
    engine.progress_until(|| !clients[3].heard.sent.borrow().is_empty());
    drop(clients);
    engine.progress_until(|| server.heard.left.get() == 5);
    assert_eq!(server.heard.messages.borrow().len(), 1, "what was sent before leaving arrives");
    let ghost = server.heard.joined.borrow()[0];
    assert_eq!(server.send(ghost, b"anyone?"), Err(E::DOCA_ERROR_NOT_CONNECTED));
}

#[test]
fn a_server_that_stops_takes_its_clients_down() {
    let (device, _directory) = device("");
    let engine = Engine::new();
    let server = Server::new(&device, &engine, "stop");
    let client = Client::new(&device, &engine, "stop");
    engine.progress_until(|| !server.heard.joined.borrow().is_empty());
    server.send(server.heard.joined.borrow()[0], b"bye").expect("sent");
    engine.progress_until(|| !server.heard.sent.borrow().is_empty());
    drop(server);
    engine.progress_until(|| client.state() == IDLE);
    assert_eq!(client.heard.messages.borrow().len(), 1, "what was sent before arrives");
}

#[test]
fn a_client_that_the_server_disconnects_ends_without_an_event() {
    let (device, _directory) = device("");
    let engine = Engine::new();
    let server = Server::new(&device, &engine, "out");
    let client = Client::new(&device, &engine, "out");
    engine.progress_until(|| !server.heard.joined.borrow().is_empty());
    let connection = server.heard.joined.borrow()[0];
    ok(unsafe { doca_comch_server_disconnect(server.raw, connection) });
    engine.progress_until(|| client.state() == IDLE);
    assert_eq!(server.heard.left.get(), 0);
    assert_eq!(unsafe { doca_comch_server_disconnect(server.raw, connection) }, E::DOCA_ERROR_NOT_CONNECTED);
}

#[test]
fn each_side_of_the_card_has_its_part_only() {
    let (host, _directory) = device("role=host");
    let mut count = 0;
    let list = out(|list| unsafe { doca_devinfo_rep_create_list(host.0, 0, list, &mut count) });
    assert_eq!(list, Err(E::DOCA_ERROR_NOT_SUPPORTED));
    assert_eq!(unsafe { doca_comch_cap_server_is_supported(host.info()) }, E::DOCA_ERROR_NOT_SUPPORTED);
    ok(unsafe { doca_comch_cap_client_is_supported(host.info()) });
    let (card, _directory) = device("role=card,rep=b1:00.0");
    assert_eq!(unsafe { doca_comch_cap_client_is_supported(card.info()) }, E::DOCA_ERROR_NOT_SUPPORTED);
    let rep = representor(&card);
    unsafe {
        let info = doca_dev_rep_as_devinfo(rep);
        assert_eq!(out(|equal| doca_devinfo_rep_is_equal_pci_addr(info, c"b1:00.0".as_ptr(), equal)), Ok(1));
        assert_eq!(doca_dev_close(card.0), E::DOCA_ERROR_IN_USE, "a representor holds its device open");
        ok(doca_dev_rep_close(rep));
    }
}

fn text_of(get: impl FnOnce(*mut std::ffi::c_char) -> doca_error) -> String {
    let mut room = [0u8; 64];
    ok(get(room.as_mut_ptr().cast()));
    std::ffi::CStr::from_bytes_until_nul(&room).expect("an end").to_str().expect("text").to_owned()
}

#[test]
fn a_device_lists_one_representor_for_each_function_of_the_host() {
    let (card, _directory) = device("role=card,rep=b1:00.0+b1:00.1+b1:02.7");
    let reps = representors(&card);
    let shown: Vec<(String, String, String, doca_pci_func_type)> = reps
        .iter()
        .map(|rep| unsafe {
            let info = doca_dev_rep_as_devinfo(*rep);
            let pci = text_of(|room| doca_devinfo_rep_get_pci_addr_str(info, room));
            let name = text_of(|room| doca_devinfo_rep_get_iface_name(info, room, 64));
            let vuid = text_of(|room| doca_devinfo_rep_get_vuid(info, room, 64));
            (pci, name, vuid, out(|kind| doca_devinfo_rep_get_pci_func_type(info, kind)).expect("a kind"))
        })
        .collect();
    let (pf, vf) = (doca_pci_func_type::DOCA_PCI_FUNC_TYPE_PF, doca_pci_func_type::DOCA_PCI_FUNC_TYPE_VF);
    let row = |pci: &str, name: &str, vuid: &str, kind| (pci.to_owned(), name.to_owned(), vuid.to_owned(), kind);
    let wanted = [
        row("0000:b1:00.0", "pf0hpf", "EMULATOR0000S0F0", pf),
        row("0000:b1:00.1", "pf0vf0", "EMULATOR0000S0F1", vf),
        row("0000:b1:02.7", "pf0vf1", "EMULATOR0000S0F2", vf),
    ];
    assert_eq!(shown, wanted);
    reps.into_iter().for_each(|rep| ok(unsafe { doca_dev_rep_close(rep) }));
}

#[test]
fn each_function_of_the_host_finds_the_server_that_serves_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let open = |more: &str| Device::open(&format!("comch_dir={},{more}", directory.path().display()));
    let card = open("role=card,rep=b1:00.0+b1:00.1+b1:00.2");
    let engine = Engine::new();
    let reps = representors(&card);
    // The same name thrice is no clash, because they serve different functions. The third is not served.
    let servers: Vec<Server> = reps[..2].iter().map(|rep| Server::create_for(*rep, &card, &engine, "kv", 4)).collect();
    servers.iter().for_each(|server| ok(unsafe { doca_ctx_start(server.ctx()) }));
    for (index, host) in ["role=host,pci=b1:00.0", "role=host,pci=b1:00.1"].into_iter().enumerate() {
        let host = open(host);
        let client = Client::new(&host, &engine, "kv");
        client.send(&[index as u8]).expect("sent");
        engine.progress_until(|| !servers[index].heard.messages.borrow().is_empty());
        engine.progress_until(|| !client.heard.sent.borrow().is_empty());
        assert_eq!(servers[index].heard.messages.borrow()[0].0, [index as u8]);
        assert_eq!(servers[index].heard.joined.borrow().len(), 1, "only its own function's client");
    }
    let unserved = open("role=host,pci=b1:00.2");
    let client = Client::create(&unserved, &engine, "kv");
    engine.progress_until(|| client.state() == IDLE);
    drop(servers);
    ok(unsafe { doca_dev_rep_close(reps[2]) });
}

/// A started consumer of `client` and producer of `server`, and what both saw.
struct FastPath {
    consumer: *mut doca_comch_consumer,
    producer: *mut doca_comch_producer,
    at_consumer: Rc<Heard>,
    at_producer: Rc<Heard>,
    id: u32,
}

impl FastPath {
    fn open(server: &Server, client: &Client, engine: &Engine, memory: &Memory) -> FastPath {
        unsafe {
            let consumer =
                out(|consumer| doca_comch_consumer_create(client.connection(), memory.mmap, consumer)).expect("one");
            let ctx = doca_comch_consumer_as_ctx(consumer);
            let (at_consumer, at_producer) = (Rc::new(Heard::default()), Rc::new(Heard::default()));
            ok(doca_pe_connect_ctx(engine.0, ctx));
            ok(doca_comch_consumer_task_post_recv_set_conf(consumer, Some(received), Some(received), 4));
            ok(doca_ctx_set_user_data(ctx, doca_data { ptr: Rc::as_ptr(&at_consumer).cast_mut().cast() }));
            assert_eq!(doca_ctx_start(ctx), E::DOCA_ERROR_IN_PROGRESS);
            engine.progress_until(|| out(|state| doca_ctx_get_state(ctx, state)) == Ok(RUNNING));
            engine.progress_until(|| !server.heard.consumers.borrow().is_empty());
            let id = out(|id| doca_comch_consumer_get_id(consumer, id)).expect("an id");
            assert_eq!(server.heard.consumers.borrow()[..], [id]);

            let connection = server.heard.joined.borrow()[0];
            let producer = out(|producer| doca_comch_producer_create(connection, producer)).expect("a producer");
            let ctx = doca_comch_producer_as_ctx(producer);
            ok(doca_pe_connect_ctx(engine.0, ctx));
            ok(doca_comch_producer_task_send_set_conf(producer, Some(data_done), Some(data_failed), 4));
            ok(doca_ctx_set_user_data(ctx, doca_data { ptr: Rc::as_ptr(&at_producer).cast_mut().cast() }));
            ok(doca_ctx_start(ctx));
            FastPath { consumer, producer, at_consumer, at_producer, id }
        }
    }

    fn post(&self, buf: *mut doca_buf) {
        unsafe {
            let task = out(|task| doca_comch_consumer_task_post_recv_alloc_init(self.consumer, buf, task));
            submit(doca_comch_consumer_task_post_recv_as_task(task.expect("a task"))).expect("posted");
        }
    }

    fn send(&self, buf: *mut doca_buf, imm: &mut [u8]) -> Result<(), doca_error> {
        unsafe {
            let (first, len) = (imm.as_mut_ptr(), imm.len() as u32);
            let task =
                out(|task| doca_comch_producer_task_send_alloc_init(self.producer, buf, first, len, self.id, task))?;
            submit(doca_comch_producer_task_send_as_task(task))
        }
    }
}

#[test]
fn data_goes_from_buffer_to_buffer_and_needs_one_posted() {
    const BYTES: usize = 1 << 20;
    let (device, _directory) = device("");
    let engine = Engine::new();
    let server = Server::new(&device, &engine, "fast");
    let client = Client::new(&device, &engine, "fast");
    engine.progress_until(|| !server.heard.joined.borrow().is_empty());
    let inventory = Inventory::new(4);
    let source = Memory::new(&device, &sample(BYTES, 5));
    let target = Memory::with_access(&device, &vec![0; BYTES], PCI_RW);
    let path = FastPath::open(&server, &client, &engine, &target);

    let data = inventory.source(&source, 0, BYTES);
    assert_eq!(path.send(data, &mut []), Err(E::DOCA_ERROR_AGAIN), "nothing is posted");
    path.post(inventory.destination(&target, 0, BYTES));
    engine.progress_until(|| match path.send(data, &mut [1, 2, 3]) {
        Ok(()) => true,
        Err(error) => {
            assert_eq!(error, E::DOCA_ERROR_AGAIN);
            false
        }
    });
    engine.progress_until(|| !path.at_consumer.received.borrow().is_empty());
    assert_eq!(path.at_consumer.received.borrow()[0], (E::DOCA_SUCCESS, BYTES, vec![1, 2, 3]));
    assert_eq!(target.bytes(), source.bytes());
    engine.progress_until(|| !path.at_producer.sent.borrow().is_empty());
    assert_eq!(path.at_producer.sent.borrow()[..], [(true, E::DOCA_SUCCESS)]);

    // Stopping flushes what is posted, and the other side hears that the consumer is gone.
    path.post(inventory.destination(&target, 0, 100));
    unsafe {
        let connection = server.heard.joined.borrow()[0];
        assert_eq!(doca_comch_server_disconnect(server.raw, connection), E::DOCA_ERROR_IN_USE);
        let ctx = doca_comch_consumer_as_ctx(path.consumer);
        assert_eq!(doca_ctx_stop(ctx), E::DOCA_ERROR_IN_PROGRESS);
        engine.progress_until(|| out(|state| doca_ctx_get_state(ctx, state)) == Ok(IDLE));
        assert_eq!(path.at_consumer.received.borrow()[1].0, E::DOCA_ERROR_SHUTDOWN);
        ok(doca_comch_consumer_destroy(path.consumer));
        engine.progress_until(|| !server.heard.expired.borrow().is_empty());
        assert_eq!(path.send(data, &mut []), Err(E::DOCA_ERROR_NOT_FOUND));
        ok(doca_ctx_stop(doca_comch_producer_as_ctx(path.producer)));
        ok(doca_comch_producer_destroy(path.producer));
    }
    give_back(data);
}

/// The one server's.
fn socket_of(directory: &tempfile::TempDir) -> std::path::PathBuf {
    std::fs::read_dir(directory.path())
        .expect("a directory")
        .map(|entry| entry.expect("an entry").path())
        .find(|path| path.extension().is_none_or(|extension| extension != "lock"))
        .expect("a socket")
}

fn address(path: &std::path::Path) -> (libc::sockaddr_un, u32) {
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    for (to, from) in address.sun_path.iter_mut().zip(path.to_str().expect("text").bytes()) {
        *to = from as libc::c_char;
    }
    (address, size_of::<libc::sockaddr_un>() as u32)
}

/// Frames that the server answers would pile up in its memory.
#[test]
fn a_peer_that_sends_and_does_not_read_is_cut_off() {
    let (device, directory) = device("");
    let engine = Engine::new();
    let server = Server::new(&device, &engine, "patient");
    let path = socket_of(&directory);
    let frame = |words: [u32; 4], text: &[u8]| [&words.map(u32::to_le_bytes).concat(), text].concat();
    let socket = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0) };
    let (address, length) = address(&path);
    assert_eq!(unsafe { libc::connect(socket, (&raw const address).cast(), length) }, 0);
    let send = |bytes: &[u8]| unsafe { libc::send(socket, bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL) > 0 };
    assert!(send(&frame([1, 1, 4080, 8], b"patient")));
    // A consumer comes, which the server says that it knows, and goes.
    let rounds =
        (0..100_000).take_while(|_| send(&frame([6, 1, 0, 0], &[])) && send(&frame([8, 1, 0, 0], &[]))).count();
    assert!(rounds < 100_000, "it went on for ever");
    unsafe { libc::close(socket) };
    engine.progress_until(|| server.heard.left.get() == 1);
    let client = Client::new(&device, &engine, "patient");
    client.send(b"hello").expect("sent");
    engine.progress_until(|| !server.heard.messages.borrow().is_empty());
}

#[test]
fn a_server_that_a_stranger_has_put_there_is_not_used() {
    if !is_root_of_others() {
        eprintln!("skipped: needs root, and another user to be");
        return;
    }
    use std::os::unix::fs::PermissionsExt;
    let (device, directory) = device("");
    let engine = Engine::new();
    let server = Server::new(&device, &engine, "believed");
    let path = socket_of(&directory);
    drop(server);
    // As in /tmp: whoever comes first has the name.
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o1777)).expect("a mode");
    let stranger = std::thread::spawn(move || unsafe {
        // This thread alone.
        assert_eq!(libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY), 0);
        let socket = libc::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0);
        let (address, length) = address(&path);
        assert_eq!(libc::bind(socket, (&raw const address).cast(), length), 0);
        assert_eq!(libc::listen(socket, 8), 0);
        socket
    });
    let socket = stranger.join().expect("a stranger");
    let client = Client::create(&device, &engine, "believed");
    engine.progress_until(|| client.state() == IDLE);
    unsafe { libc::close(socket) };
}

#[test]
fn a_stranger_on_the_socket_does_not_disturb_the_server() {
    let (device, directory) = device("");
    let engine = Engine::new();
    let server = Server::new(&device, &engine, "robust");
    let path = socket_of(&directory);
    for _ in 0..3 {
        unsafe {
            let socket = libc::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET, 0);
            let (address, length) = address(&path);
            assert_eq!(libc::connect(socket, (&raw const address).cast(), length), 0);
            libc::send(socket, c"babble babble babble".as_ptr().cast(), 20, libc::MSG_NOSIGNAL);
            libc::close(socket);
        }
    }
    let client = Client::new(&device, &engine, "robust");
    client.send(b"hello").expect("sent");
    engine.progress_until(|| !server.heard.messages.borrow().is_empty());
    assert_eq!(server.heard.joined.borrow().len(), 1, "strangers never joined");
}

#[test]
fn a_message_wakes_the_notification_descriptor() {
    let (device, _directory) = device("");
    let (ours, theirs) = (Engine::new(), Engine::new());
    let server = Server::new(&device, &ours, "wake");
    let client = Client::create(&device, &theirs, "wake");
    theirs.progress_until(|| client.state() == RUNNING);
    while ours.progress() {}
    ours.progress_until(|| !server.heard.joined.borrow().is_empty());
    let fd = out(|fd| unsafe { doca_pe_get_notification_handle(ours.0, fd) }).expect("a descriptor");
    let ready = |wait| unsafe { libc::poll(&mut libc::pollfd { fd, events: libc::POLLIN, revents: 0 }, 1, wait) };
    ok(unsafe { doca_pe_request_notification(ours.0) });
    assert_eq!(ready(0), 0);
    client.send(b"wake up").expect("sent");
    assert_eq!(ready(20_000), 1);
    ok(unsafe { doca_pe_clear_notification(ours.0, fd) });
    ours.progress_until(|| !server.heard.messages.borrow().is_empty());
    theirs.progress_until(|| !client.heard.sent.borrow().is_empty());
}
