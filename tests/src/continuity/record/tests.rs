//! The record finds what a client must not see, and nothing where all is well.

use super::*;
use crate::continuity::population::Channel;

/// The clients of one channel without a history, and some others.
struct Scene {
    record: Record,
    population: Population,
    channel: usize,
    clients: Vec<usize>,
    messages: Vec<String>,
}

impl Scene {
    /// With two clients that are connected and have received the first message.
    fn start() -> Self {
        let population = Population::new(60, 10);
        let record = Record::new(&population);
        let members = population.members.iter();
        let no_history = members.filter(|member| member.kind == Kind::NoHistory);
        let clients: Vec<_> = no_history.collect();
        let channel = clients[0].channel;
        let clients = clients.iter().filter(|member| member.channel == channel);
        let clients: Vec<usize> = clients.map(|member| member.number).take(2).collect();
        let mut scene = Self {
            record,
            population,
            channel,
            clients,
            messages: Vec::new(),
        };
        for client in scene.clients.clone() {
            scene.record.joined(client);
        }
        scene.publish(1);
        for place in 0..2 {
            scene.receive(place, &[0]);
        }
        scene
    }

    fn publish(&mut self, count: usize) {
        for _ in 0..count {
            let (_, message) = self.record.next_message(self.channel);
            self.messages.push(message);
        }
    }

    fn receive(&self, place: usize, messages: &[usize]) {
        for message in messages {
            let message = &self.messages[*message];
            let received = self
                .record
                .numbered(self.clients[place], self.channel, message);
            received.unwrap();
        }
    }

    /// What clients over WebSocket have found, at the end.
    fn found(&self) -> Tally {
        let checker = &self.record.streams;
        checker
            .checker()
            .look(checker.now() + Duration::from_secs(60), Duration::ZERO);
        let seen = self.record.seen();
        seen.kinds[&Kind::NoHistory].clone()
    }
}

#[test]
fn nothing_is_found_where_each_message_comes_once_and_in_order() {
    let mut scene = Scene::start();
    scene.publish(3);
    scene.receive(0, &[1, 2, 3]);
    scene.receive(1, &[1, 2, 3]);
    let found = scene.found();
    assert!(found.faults.is_empty(), "{found:?}");
    assert_eq!((found.ended, found.presence, found.messages), (0, 0, 8));
}

#[test]
fn a_lost_a_repeated_and_a_late_message_are_found() {
    for (received, fault) in [
        (vec![1, 3], Fault::Lost),
        (vec![1, 2, 2, 3], Fault::Repeated),
        (vec![1, 3, 2], Fault::Reordered),
        // What is missing at the end is overdue.
        (vec![1, 2], Fault::Overdue),
    ] {
        let mut scene = Scene::start();
        scene.publish(3);
        scene.receive(0, &[1, 2, 3]);
        scene.receive(1, &received);
        let found = scene.found();
        assert_eq!(found.faults, BTreeMap::from([(fault, 1)]), "{received:?}");
    }
}

#[test]
fn a_client_that_connects_again_has_ended_once_and_begins_with_its_next_message() {
    let mut scene = Scene::start();
    scene.publish(4);
    scene.receive(0, &[1, 2, 3, 4]);
    scene.receive(1, &[1]);
    scene.record.ended(scene.clients[1], "closed with 1012");
    assert_eq!(scene.record.connections(), 1);
    scene.record.joined(scene.clients[1]);
    scene.receive(1, &[4]);
    let found = scene.found();
    assert!(found.faults.is_empty(), "{found:?}");
    assert_eq!((found.ended, found.missed_while_away), (1, 2));
}

#[test]
fn a_leave_is_found_and_a_join_of_a_client_that_was_there() {
    let scene = Scene::start();
    for other in ["a", "b"] {
        scene.record.join(scene.clients[0], other);
    }
    scene.record.join(scene.clients[1], "a");
    assert_eq!(scene.found().presence, 0);
    scene.record.join(scene.clients[0], "b");
    assert_eq!(scene.found().presence, 1);
    scene.record.leave(scene.clients[1], "a");
    assert_eq!(scene.found().presence, 2);
}

#[test]
fn a_pause_is_how_late_the_latest_message_of_a_part_was() {
    let mut scene = Scene::start();
    scene.record.end_window("before");
    scene.publish(2);
    let begin = scene.record.streams.now();
    // As if it had been sent when the run began.
    for message in ["2 0 ", &scene.messages[2]] {
        let received = scene
            .record
            .numbered(scene.clients[0], scene.channel, message);
        received.unwrap();
    }
    scene.record.end_window("event");
    let windows = scene.record.seen().windows;
    let most = windows[1].websocket.most();
    assert!(begin <= most, "{most:?}");
    assert_eq!(windows[1].websocket.quantile(500), Duration::ZERO);
    assert_eq!(windows[1].websocket.count() + windows[1].http.count(), 60);
}

#[test]
fn all_clients_have_to_reach_the_last_message() {
    let mut scene = Scene::start();
    scene.publish(1);
    scene.receive(0, &[1]);
    let position = Position {
        epoch: "e".into(),
        offset: 1,
    };
    let channels = scene.population.channels.iter().enumerate();
    let stored = channels.filter(|(_, channel)| channel.stream == Stream::History);
    let stored = stored.map(|(number, _): (usize, &Channel)| (number, position.clone()));
    let marks = scene
        .record
        .marks(&scene.population, &stored.collect())
        .unwrap();
    let unsettled = scene.record.streams.checker().unsettled(&marks);
    let is_unsettled = |place: usize| {
        let mut unsettled = unsettled.iter();
        unsettled.any(|(client, _)| *client == scene.clients[place])
    };
    assert!(!is_unsettled(0));
    assert!(is_unsettled(1));
}
