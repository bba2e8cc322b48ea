//! The same cases on both.

use super::*;
use crate::config::Config;
use crate::protocol::instance::Instance;
use crate::redis::testing::RedisServer;

fn values(config: &str) -> Values {
    let config = Config::parse("test", config).unwrap();
    let servers = crate::redis::testing::servers(&config.broker);
    Values::new(&servers, &config.values)
}

fn user(user: &str) -> Owner {
    Owner::User(user.to_owned())
}

fn put(name: &str, value: &str, ttl: Duration) -> Put {
    Put {
        name: name.to_owned(),
        value: Bytes::copy_from_slice(value.as_bytes()),
        ttl,
    }
}

const HOUR: Duration = Duration::from_secs(3600);

/// One test without Redis and one with, in modules of their own.
macro_rules! same_on_both {
    ($($case:ident),* $(,)?) => {
        mod on_memory {
            $(#[tokio::test] async fn $case() {
                super::$case(super::values("values: {size: 100B}")).await;
            })*
        }
        mod on_redis {
            $(#[tokio::test] async fn $case() {
                let server = super::RedisServer::start().await;
                let text = format!("broker: {{kind: redis, url: \"{}\"}}\nvalues: {{size: 100B}}", server.url());
                super::$case(super::values(&text)).await;
            })*
        }
    };
}

same_on_both! {
    a_value_is_kept_for_its_owner_until_it_is_deleted,
    a_value_expires,
    an_owner_has_a_limited_number_of_values,
    what_is_too_long_is_refused_and_changes_nothing,
}

async fn a_value_is_kept_for_its_owner_until_it_is_deleted(values: Values) {
    let (ann, bob) = (user("ann"), user("bob"));
    let client = Owner::Client(ClientId::random(Instance::random()));
    assert_eq!(values.get(&ann, "cart").await.unwrap(), None);
    values.put(&ann, put("cart", "[1]", HOUR)).await.unwrap();
    values.put(&ann, put("cart", "[1,2]", HOUR)).await.unwrap();
    values
        .put(&ann, put("a b\u{0}", "\u{0}", HOUR))
        .await
        .unwrap();
    values.put(&client, put("cart", "[]", HOUR)).await.unwrap();
    assert_eq!(values.get(&ann, "cart").await.unwrap().unwrap(), "[1,2]");
    assert_eq!(values.get(&bob, "cart").await.unwrap(), None);
    assert_eq!(values.get(&client, "cart").await.unwrap().unwrap(), "[]");
    let all = values.all(&ann).await.unwrap();
    let expected = [("a b\u{0}", "\u{0}"), ("cart", "[1,2]")];
    assert_eq!(
        all,
        expected.map(|(name, value)| (name.to_owned(), Bytes::from(value)))
    );
    assert!(values.delete(&ann, "cart").await.unwrap());
    assert!(!values.delete(&ann, "cart").await.unwrap());
    assert_eq!(values.get(&ann, "cart").await.unwrap(), None);
    assert_eq!(values.all(&bob).await.unwrap(), []);
}

async fn a_value_expires(values: Values) {
    let ann = user("ann");
    values.put(&ann, put("long", "1", HOUR)).await.unwrap();
    values
        .put(&ann, put("short", "2", Duration::from_millis(50)))
        .await
        .unwrap();
    let ended = async {
        while values.get(&ann, "short").await.unwrap().is_some() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let wait_max = crate::redis::testing::DEADLINE;
    tokio::time::timeout(wait_max, ended)
        .await
        .expect("it does not expire");
    assert!(!values.delete(&ann, "short").await.unwrap());
    assert_eq!(values.all(&ann).await.unwrap().len(), 1);
}

async fn an_owner_has_a_limited_number_of_values(values: Values) {
    let ann = user("ann");
    for number in 0..VALUES_MAX {
        values
            .put(&ann, put(&number.to_string(), "1", HOUR))
            .await
            .unwrap();
    }
    let more = values.put(&ann, put("more", "1", HOUR)).await;
    assert!(matches!(more, Err(ValueError::TooMany)), "{more:?}");
    values.put(&ann, put("7", "2", HOUR)).await.unwrap();
    values
        .put(&user("bob"), put("more", "1", HOUR))
        .await
        .unwrap();
    assert!(values.delete(&ann, "7").await.unwrap());
    values.put(&ann, put("more", "1", HOUR)).await.unwrap();
    assert_eq!(values.all(&ann).await.unwrap().len(), VALUES_MAX);
}

async fn what_is_too_long_is_refused_and_changes_nothing(values: Values) {
    let ann = user("ann");
    let longest = "n".repeat(VALUE_NAME_BYTES_MAX);
    values
        .put(&ann, put(&longest, &"x".repeat(100), TTL_MAX))
        .await
        .unwrap();
    let too_large = values
        .put(&ann, put(&longest, &"x".repeat(101), HOUR))
        .await;
    let found = ValueError::TooLarge {
        max: 100,
        found: 101,
    }
    .to_string();
    assert_eq!(too_large.unwrap_err().to_string(), found);
    let too_long = TTL_MAX + Duration::from_millis(1);
    for ttl in [Duration::ZERO, too_long] {
        let refused = values.put(&ann, put(&longest, "", ttl)).await;
        assert!(matches!(refused, Err(ValueError::Ttl)), "{refused:?}");
    }
    for name in ["", &format!("{longest}n")] {
        let refused = values.put(&ann, put(name, "", HOUR)).await;
        assert!(matches!(refused, Err(ValueError::Name(_))), "{refused:?}");
        assert!(values.get(&ann, name).await.is_err());
        assert!(values.delete(&ann, name).await.is_err());
    }
    let kept = values.get(&ann, &longest).await.unwrap().unwrap();
    assert_eq!(kept.len(), 100);
    assert_eq!(values.all(&ann).await.unwrap().len(), 1);
}

#[tokio::test]
async fn several_servers_share_the_owners() {
    let servers = [RedisServer::start().await, RedisServer::start().await];
    let urls: Vec<String> = servers
        .iter()
        .map(|server| format!("\"{}\"", server.url()))
        .collect();
    let values = values(&format!(
        "broker: {{kind: redis, urls: [{}]}}",
        urls.join(", ")
    ));
    for number in 0..20 {
        let owner = user(&number.to_string());
        values.put(&owner, put("cart", "[1]", HOUR)).await.unwrap();
        assert_eq!(values.all(&owner).await.unwrap().len(), 1);
    }
    let counts = servers.each_ref().map(|server| {
        let keys = server.cli(&["KEYS", "causeway:va:*"]);
        keys.lines().filter(|line| !line.is_empty()).count()
    });
    assert_eq!(counts.iter().sum::<usize>(), 20);
    assert!(counts.iter().all(|count| 0 < *count), "{counts:?}");
}
