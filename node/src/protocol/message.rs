//! How the protocol's messages are declared: once, for both codecs.

/// Declares messages: Protobuf by their field attributes, JSON by their field names.
///
/// As proto3 does it, a field that has its default is not written, and one that is missing has it.
macro_rules! messages {
    ($(
        $(#[$attribute:meta])*
        pub(crate) struct $name:ident {
            $( $(#[$field_attribute:meta])* pub(crate) $field:ident: $type:ty, )*
        }
    )*) => {$(
        $(#[$attribute])*
        #[derive(Clone, PartialEq, ::prost::Message, ::serde::Serialize, ::serde::Deserialize)]
        #[serde(default)]
        pub(crate) struct $name {
            $(
                $(#[$field_attribute])*
                #[serde(skip_serializing_if = "crate::protocol::message::is_default")]
                pub(crate) $field: $type,
            )*
        }
    )*};
}

/// Writes a message that has one of several bodies as a JSON object with that body's key, and reads it.
///
/// Unknown keys are ignored, as unknown fields are in Protobuf.
macro_rules! json_with_body {
    ($message:ident { $($field:ident),* } $body:ident: $bodies:ident { $($key:literal => $variant:ident),* $(,)? }) => {
        impl ::serde::Serialize for $message {
            fn serialize<S: ::serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                use ::serde::ser::SerializeMap as _;
                let mut map = serializer.serialize_map(None)?;
                $(
                    if !crate::protocol::message::is_default(&self.$field) {
                        map.serialize_entry(stringify!($field), &self.$field)?;
                    }
                )*
                match &self.$body {
                    None => {}
                    $( Some($bodies::$variant(body)) => map.serialize_entry($key, body)?, )*
                }
                map.end()
            }
        }

        impl<'de> ::serde::Deserialize<'de> for $message {
            fn deserialize<D: ::serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;

                impl<'de> ::serde::de::Visitor<'de> for Visitor {
                    type Value = $message;

                    fn expecting(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                        f.write_str(concat!("an object (", stringify!($message), ")"))
                    }

                    fn visit_map<M>(self, mut map: M) -> Result<$message, M::Error>
                    where
                        M: ::serde::de::MapAccess<'de>,
                    {
                        let mut message = $message::default();
                        while let Some(key) = map.next_key::<::std::borrow::Cow<'de, str>>()? {
                            match &*key {
                                $( stringify!($field) => message.$field = map.next_value()?, )*
                                $( $key => message.$body = Some($bodies::$variant(map.next_value()?)), )*
                                _ => {
                                    map.next_value::<::serde::de::IgnoredAny>()?;
                                }
                            }
                        }
                        Ok(message)
                    }
                }

                deserializer.deserialize_map(Visitor)
            }
        }
    };
}

/// Whether a field is not written.
pub(super) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
