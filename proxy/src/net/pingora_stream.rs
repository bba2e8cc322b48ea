//! Implements the traits that Pingora requires of a stream besides reading and writing.

/// Implements them by delegation to a field (`over`), by a function that returns the id (`called`), or without any id.
macro_rules! pingora_stream {
    ([$($generics:tt)*] $stream:ty, over $below:ident) => {
        pingora_stream!([$($generics)*] $stream);

        impl<$($generics)*> pingora::protocols::UniqueID for $stream {
            fn id(&self) -> pingora::protocols::UniqueIDType {
                self.$below.id()
            }
        }

        impl<$($generics)*> pingora::protocols::GetTimingDigest for $stream {
            fn get_timing_digest(&self) -> Vec<Option<pingora::protocols::TimingDigest>> {
                self.$below.get_timing_digest()
            }
        }

        impl<$($generics)*> pingora::protocols::GetProxyDigest for $stream {
            fn get_proxy_digest(
                &self,
            ) -> Option<std::sync::Arc<pingora::protocols::raw_connect::ProxyDigest>> {
                self.$below.get_proxy_digest()
            }
        }

        impl<$($generics)*> pingora::protocols::GetSocketDigest for $stream {
            fn get_socket_digest(
                &self,
            ) -> Option<std::sync::Arc<pingora::protocols::SocketDigest>> {
                self.$below.get_socket_digest()
            }

            fn set_socket_digest(&mut self, digest: pingora::protocols::SocketDigest) {
                self.$below.set_socket_digest(digest);
            }
        }
    };
    ([$($generics:tt)*] $stream:ty, called $id:expr) => {
        pingora_stream!([$($generics)*] $stream);

        impl<$($generics)*> pingora::protocols::UniqueID for $stream {
            fn id(&self) -> pingora::protocols::UniqueIDType {
                let id: fn(&Self) -> pingora::protocols::UniqueIDType = $id;
                id(self)
            }
        }

        impl<$($generics)*> pingora::protocols::GetTimingDigest for $stream {
            fn get_timing_digest(&self) -> Vec<Option<pingora::protocols::TimingDigest>> {
                Vec::new()
            }
        }

        impl<$($generics)*> pingora::protocols::GetProxyDigest for $stream {
            fn get_proxy_digest(
                &self,
            ) -> Option<std::sync::Arc<pingora::protocols::raw_connect::ProxyDigest>> {
                None
            }
        }

        impl<$($generics)*> pingora::protocols::GetSocketDigest for $stream {
            fn get_socket_digest(
                &self,
            ) -> Option<std::sync::Arc<pingora::protocols::SocketDigest>> {
                None
            }
        }
    };
    ([$($generics:tt)*] $stream:ty) => {
        #[async_trait::async_trait]
        impl<$($generics)*> pingora::protocols::Shutdown for $stream {
            async fn shutdown(&mut self) {
                // The connection ends even if this fails.
                let _ = tokio::io::AsyncWriteExt::shutdown(self).await;
            }
        }

        impl<$($generics)*> pingora::protocols::Peek for $stream {}
    };
}

pub(crate) use pingora_stream;
