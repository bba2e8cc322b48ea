use super::*;
use crate::protocol::instance::Instance;

/// A client that records its commands, or rejects them.
#[derive(Default)]
struct Recorder {
    commands: Mutex<Vec<ControlCommand>>,
    refuses: Mutex<Option<CommandRejected>>,
}

impl ClientControl for Recorder {
    fn command(self: Arc<Self>, command: &ControlCommand) -> Result<(), CommandRejected> {
        match *self.refuses.lock() {
            Some(refused) => Err(refused),
            None => {
                self.commands.lock().push(command.clone());
                Ok(())
            }
        }
    }
}

/// Records which users connected and disconnected.
#[derive(Default)]
struct Watch(Mutex<Vec<String>>);

impl UserWatch for Watch {
    fn connected(&self, user: &Arc<str>) {
        self.0.lock().push(format!("+{user}"));
    }

    fn disconnected(&self, user: &Arc<str>) {
        self.0.lock().push(format!("-{user}"));
    }
}

struct Setup {
    directory: Arc<Directory>,
    watch: Arc<Watch>,
    instance: Instance,
}

fn set_up() -> Setup {
    let watch = Arc::new(Watch::default());
    Setup {
        directory: Directory::new(Arc::clone(&watch) as Arc<dyn UserWatch>),
        watch,
        instance: Instance::random(),
    }
}

impl Setup {
    fn enter(&self, user: &str) -> (ClientId, Arc<Recorder>, Listed) {
        let client = ClientId::random(self.instance);
        let recorder = Arc::new(Recorder::default());
        let controls = Arc::clone(&recorder) as Arc<dyn ClientControl>;
        let reserved = self.directory.reserve(&user.into(), None).unwrap();
        let (listed, _) = reserved.enter(client, controls);
        (client, recorder, listed)
    }

    fn watched(&self) -> Vec<String> {
        self.watch.0.lock().clone()
    }
}

fn goodbye() -> ControlCommand {
    ControlCommand::Disconnect {
        code: 3000,
        reason: "bye".to_owned(),
    }
}

fn user(user: &str) -> Target {
    Target::User {
        user: user.to_owned(),
        except: Vec::new(),
    }
}

#[test]
fn a_user_connects_with_its_first_client_and_disconnects_with_its_last() {
    let setup = set_up();
    let (_, _, first) = setup.enter("ann");
    let (_, _, second) = setup.enter("ann");
    let (_, _, other) = setup.enter("bob");
    assert_eq!(setup.watched(), ["+ann", "+bob"]);
    assert_eq!(setup.directory.clients(), 3);
    assert_eq!(setup.directory.users(), 2);
    assert_eq!(setup.directory.clients_of("ann"), 2);
    drop(first);
    assert_eq!(setup.watched(), ["+ann", "+bob"]);
    drop(second);
    drop(other);
    assert_eq!(setup.watched(), ["+ann", "+bob", "-ann", "-bob"]);
    assert_eq!(setup.directory.clients(), 0);
    assert_eq!(setup.directory.users(), 0);
}

#[test]
fn a_command_for_a_user_reaches_its_clients_and_no_others() {
    let setup = set_up();
    let (_, first, _a) = setup.enter("ann");
    let (_, second, _b) = setup.enter("ann");
    let (_, other, _c) = setup.enter("bob");
    let result = setup.directory.execute(&user("ann"), &goodbye());
    assert_eq!(
        result,
        CommandResult {
            accepted: 2,
            busy: 0
        }
    );
    assert_eq!(*first.commands.lock(), [goodbye()]);
    assert_eq!(*second.commands.lock(), [goodbye()]);
    assert!(other.commands.lock().is_empty());
}

#[test]
fn excepted_clients_get_no_command() {
    let setup = set_up();
    let (kept, first, _a) = setup.enter("ann");
    let (_, second, _b) = setup.enter("ann");
    let target = Target::User {
        user: "ann".to_owned(),
        except: vec![kept],
    };
    assert_eq!(setup.directory.execute(&target, &goodbye()).accepted, 1);
    assert!(first.commands.lock().is_empty());
    assert_eq!(second.commands.lock().len(), 1);
}

#[test]
fn a_command_for_one_client_reaches_it_if_its_user_matches() {
    let setup = set_up();
    let (client, recorder, _a) = setup.enter("ann");
    let of = |user: &str| Target::ClientOf {
        user: user.to_owned(),
        client,
    };
    let give = |target: &Target| setup.directory.execute(target, &goodbye()).accepted;
    assert_eq!(give(&of("bob")), 0);
    assert_eq!(give(&of("ann")), 1);
    assert_eq!(give(&Target::Client(client)), 1);
    assert_eq!(recorder.commands.lock().len(), 2);
    let stranger = ClientId::random(setup.instance);
    assert_eq!(give(&Target::Client(stranger)), 0);
}

#[test]
fn anonymous_clients_are_not_found_by_user() {
    let setup = set_up();
    let (client, recorder, listed) = setup.enter("");
    assert!(setup.watched().is_empty());
    assert_eq!(setup.directory.execute(&user(""), &goodbye()).accepted, 0);
    let alone = Target::Client(client);
    assert_eq!(setup.directory.execute(&alone, &goodbye()).accepted, 1);
    assert_eq!(recorder.commands.lock().len(), 1);
    drop(listed);
    assert!(setup.watched().is_empty());
    assert_eq!(setup.directory.execute(&alone, &goodbye()).accepted, 0);
}

#[test]
fn busy_clients_are_counted_on_their_own() {
    let setup = set_up();
    let (_, busy, _a) = setup.enter("ann");
    let (_, _, _b) = setup.enter("ann");
    *busy.refuses.lock() = Some(CommandRejected::Busy);
    let result = setup.directory.execute(&user("ann"), &goodbye());
    assert_eq!(
        result,
        CommandResult {
            accepted: 1,
            busy: 1
        }
    );
}

fn limit(clients_max: usize, displaces_oldest: bool) -> Option<UserLimit> {
    Some(UserLimit {
        clients_max,
        displaces_oldest,
    })
}

impl Setup {
    /// Enters a client with its reservation; also returns how many it has displaced.
    fn enter_reserved(&self, reserved: Reserved) -> (Arc<Recorder>, Listed, usize) {
        let recorder = Arc::new(Recorder::default());
        let controls = Arc::clone(&recorder) as Arc<dyn ClientControl>;
        let client = ClientId::random(self.instance);
        let (listed, displaced) = reserved.enter(client, controls);
        for controls in &displaced {
            Arc::clone(controls).command(&goodbye()).unwrap();
        }
        (recorder, listed, displaced.len())
    }
}

#[test]
fn the_limit_of_a_user_includes_reservations() {
    let setup = set_up();
    let reserve = |user: &str| setup.directory.reserve(&user.into(), limit(2, false));
    let first = reserve("ann").unwrap();
    let second = reserve("ann").unwrap();
    assert!(reserve("ann").is_err());
    assert!(reserve("bob").is_ok() && reserve("").is_ok());
    drop(second);
    let (_, first, _) = setup.enter_reserved(first);
    let (_, second, _) = setup.enter_reserved(reserve("ann").unwrap());
    assert!(reserve("ann").is_err());
    drop(first);
    let third = reserve("ann").unwrap();
    drop((second, third));
    assert!(setup.directory.state.lock().reserved.is_empty());
    assert_eq!(setup.watched(), ["+ann", "-ann"]);
    let nobody: Vec<_> = (0..3).map(|_| reserve("").unwrap()).collect();
    assert_eq!(nobody.len(), 3);
}

#[test]
fn a_new_client_may_displace_the_oldest_of_its_user() {
    for clients_max in [1, 3] {
        let setup = set_up();
        let reserve = || {
            setup
                .directory
                .reserve(&"ann".into(), limit(clients_max, true))
        };
        // All at once: none is rejected, and in the end the limit holds.
        let reserved: Vec<Reserved> = (0..5).map(|_| reserve().unwrap()).collect();
        let entered: Vec<_> = reserved
            .into_iter()
            .map(|reserved| setup.enter_reserved(reserved))
            .collect();
        let displaced: Vec<bool> = entered
            .iter()
            .map(|(recorder, ..)| !recorder.commands.lock().is_empty())
            .collect();
        let expected: Vec<bool> = (0..5).map(|number| number < 5 - clients_max).collect();
        assert_eq!(displaced, expected);
        assert_eq!(
            setup.directory.execute(&user("ann"), &goodbye()).accepted,
            clients_max as u32
        );
        assert_eq!(setup.directory.clients(), 5, "until they have gone");
        drop(entered);
        assert_eq!(setup.watched(), ["+ann", "-ann"]);
        assert_eq!((setup.directory.clients(), setup.directory.users()), (0, 0));
    }
}

#[test]
fn values_kept_with_a_client_are_dropped_when_it_leaves() {
    let setup = set_up();
    let (_, _, first) = setup.enter("ann");
    let (_, _, second) = setup.enter("ann");
    let kept = [Arc::new(()), Arc::new(())];
    first.keep(Arc::clone(&kept[0]));
    second.keep(Arc::clone(&kept[1]));
    drop(first);
    assert_eq!(kept.each_ref().map(Arc::strong_count), [1, 2]);
    drop(second);
    assert_eq!(kept.each_ref().map(Arc::strong_count), [1, 1]);
}

#[test]
fn commands_for_a_client_that_was_handed_off_are_passed_on_until_that_is_forgotten() {
    let setup = set_up();
    let (client, recorder, listed) = setup.enter("ann");
    let next = Arc::new(Recorder::default());
    let controls = Arc::clone(&next) as Arc<dyn ClientControl>;
    listed.move_to(Arc::clone(&controls));
    assert_eq!(setup.watched(), ["+ann", "-ann"]);
    let except = Target::User {
        user: "ann".to_owned(),
        except: vec![client],
    };
    for (target, accepted) in [
        (user("ann"), 1),
        (Target::Client(client), 1),
        (user("bob"), 0),
        (user(""), 0),
        (except, 0),
    ] {
        let result = setup.directory.execute(&target, &goodbye());
        assert_eq!(result.accepted, accepted, "{target:?}");
    }
    assert_eq!(next.commands.lock().len(), 2);
    assert!(recorder.commands.lock().is_empty());

    // It comes back: it is no longer passed on, nor is the client forgotten with what passed it on before.
    let reserved = setup.directory.reserve(&"ann".into(), None).unwrap();
    let again = Arc::clone(&recorder) as Arc<dyn ClientControl>;
    let (_listed, _) = reserved.enter(client, again);
    setup.directory.forget_moved(client, &controls);
    assert_eq!(
        setup.directory.execute(&user("ann"), &goodbye()).accepted,
        1
    );
    assert_eq!(recorder.commands.lock().len(), 1);

    let (client, _, listed) = setup.enter("bob");
    listed.move_to(Arc::clone(&controls));
    setup.directory.forget_moved(client, &controls);
    assert_eq!(
        setup.directory.execute(&user("bob"), &goodbye()).accepted,
        0
    );
}
