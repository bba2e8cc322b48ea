// What two clients do with each other, and what each of them sees. Runs in Node and, as a text, in a page: it uses
// nothing from outside of the function.

export async function tour(Centrifuge, options, orders) {
  const DEADLINE = 20_000;
  const { binary, tokens } = orders;
  const seen = {};
  const clients = [];

  const encode = (value) => (binary ? new TextEncoder().encode(JSON.stringify(value)) : value);
  const decode = (data) => (binary ? JSON.parse(new TextDecoder().decode(data)) : data);

  function within(what, promise) {
    let timer;
    const late = new Promise((_, reject) => {
      timer = setTimeout(() => reject(new Error(`${what}: not within ${DEADLINE} ms; seen: ${JSON.stringify(seen)}`)), DEADLINE);
    });
    return Promise.race([promise, late]).finally(() => clearTimeout(timer));
  }

  // The next event of a kind that fits.
  function next(emitter, event, fits = () => true) {
    return within(event, new Promise((resolve) => {
      const heard = (context) => {
        if (!fits(context)) return;
        emitter.removeListener(event, heard);
        resolve(context);
      };
      emitter.on(event, heard);
    }));
  }

  function client(more) {
    const made = new Centrifuge(orders.transports, {
      ...options, emulationEndpoint: orders.emulationEndpoint, minReconnectDelay: 20, maxReconnectDelay: 200, ...more,
    });
    clients.push(made);
    return made;
  }

  async function connect(made) {
    const connected = next(made, "connected");
    made.connect();
    return connected;
  }

  async function subscribe(subscription) {
    const subscribed = next(subscription, "subscribed");
    subscription.subscribe();
    return subscribed;
  }

  const refusal = (promise) => within("a refusal", promise).then(() => "granted", ({ code }) => code);

  try {
    // Who is who.
    const ann = client({ token: tokens.ann });
    const bob = client({ token: tokens.bob });
    const news = next(bob, "subscribed", ({ channel }) => channel === orders.news);
    const annConnected = await connect(ann);
    await connect(bob);
    await news;
    seen.transport = annConnected.transport;

    // A room: who comes, what is said, who is there, what was said.
    const options = { joinLeave: true, recoverable: true, positioned: true };
    const annRoom = ann.newSubscription(orders.room, options);
    const bobRoom = bob.newSubscription(orders.room, options);
    const annSubscribed = await subscribe(annRoom);
    seen.subscribed = { recoverable: annSubscribed.recoverable, positioned: annSubscribed.positioned };
    const joined = next(annRoom, "join", ({ info }) => info.user === orders.bob);
    await subscribe(bobRoom);
    seen.joined = (await joined).info.user === orders.bob;

    const text = "über \u{1f980} \\ \" \n";
    const heard = next(bobRoom, "publication");
    await within("publish", annRoom.publish(encode({ text, number: 1 })));
    const publication = await heard;
    seen.heard = {
      same: decode(publication.data).text === text,
      by: publication.info.user === orders.ann,
      name: decode(publication.info.connInfo).name,
      offset: publication.offset,
    };
    const presence = await within("presence", annRoom.presence());
    seen.presence = Object.values(presence.clients).map(({ user }) => user.split("-")[0]).sort();
    const stats = await within("presenceStats", bobRoom.presenceStats());
    seen.presenceStats = [stats.numClients, stats.numUsers];
    const history = await within("history", bobRoom.history({ limit: 10 }));
    seen.history = history.publications.map(({ data }) => decode(data).number);

    // Whoever is away gets what was said meanwhile, once and in order.
    const away = next(bob, "disconnected");
    bob.disconnect();
    await away;
    for (const number of [2, 3, 4]) await within("publish", annRoom.publish(encode({ number })));
    const missed = [];
    const all = next(bobRoom, "publication", ({ data }) => missed.push(decode(data).number) === 3);
    const back = next(bobRoom, "subscribed");
    bob.connect();
    const { wasRecovering, recovered } = await back;
    await all;
    seen.missed = { wasRecovering, recovered, missed };

    // A channel that bob hears without asking.
    const broadcast = next(bob, "publication", ({ channel }) => channel === orders.news);
    await within("publish", ann.publish(orders.news, encode({ number: 5 })));
    seen.news = decode((await broadcast).data).number;

    // What is not granted.
    const unsubscribed = (channel, more) => {
      const subscription = ann.newSubscription(channel, more);
      const refused = next(subscription, "unsubscribed");
      subscription.subscribe();
      return refused.then(({ code }) => code);
    };
    seen.refused = {
      unknown: await unsubscribed("nowhere:1"),
      dialog: await unsubscribed(orders.dialog),
      noToken: await unsubscribed(orders.secretRoom),
      rpc: await refusal(ann.rpc("method", encode({}))),
      silent: await refusal(ann.history("silent:1", { limit: 1 })),
    };
    ann.removeSubscription(ann.getSubscription(orders.secretRoom));
    seen.refused.otherToken = await unsubscribed(orders.secretRoom, { token: tokens.otherRoom });
    ann.removeSubscription(ann.getSubscription(orders.secretRoom));

    // What is.
    await subscribe(bob.newSubscription(orders.dialog));
    await subscribe(ann.newSubscription(orders.secretRoom, { token: tokens.secretRoom }));
    await within("send", ann.send(encode({ nobody: "answers" })));
    seen.granted = true;

    // A leave.
    const left = next(bobRoom, "leave", ({ info }) => info.user === orders.ann);
    annRoom.unsubscribe();
    seen.left = (await left).info.user === orders.ann;

    // Tokens: one that is out of date is replaced, in time or too late, and a forged one is final.
    const late = client({ token: tokens.expired, getToken: async () => tokens.ann });
    await connect(late);
    const asked = new Promise((resolve) => {
      const brief = client({
        token: tokens.short,
        getToken: async () => {
          resolve(brief);
          return tokens.ann;
        },
      });
      brief.connect();
    });
    const brief = await within("a refresh", asked);
    const briefNews = brief.newSubscription(orders.room);
    await subscribe(briefNews);
    seen.refreshed = true;
    const forged = client({ token: tokens.forged });
    const final = next(forged, "disconnected");
    forged.connect();
    seen.forged = (await final).code;
  } finally {
    for (const made of clients) made.disconnect();
  }
  return seen;
}

// What a client sees whose application decides about it: orders.hooks says where its backend was told to answer what.
export async function asked(Centrifuge, options, orders) {
  const made = new Centrifuge(orders.transports, { ...options, emulationEndpoint: orders.emulationEndpoint, data: { key: "open sesame" } });
  const seen = {};
  const once = (emitter, event) => new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`${event}: not in time; seen: ${JSON.stringify(seen)}`)), 20_000);
    emitter.once(event, (context) => {
      clearTimeout(timer);
      resolve(context);
    });
  });
  try {
    const connected = once(made, "connected");
    made.connect();
    seen.welcome = (await connected).data;
    const subscribe = async (channel) => {
      const subscription = made.newSubscription(channel);
      const subscribed = once(subscription, "subscribed").then(({ data }) => ({ data }));
      const refused = once(subscription, "unsubscribed").then(({ code }) => ({ code }));
      refused.catch(() => {});
      subscribed.catch(() => {});
      subscription.subscribe();
      return { subscription, seen: await Promise.race([subscribed, refused]) };
    };
    const granted = await subscribe("hooked:open");
    seen.granted = granted.seen;
    seen.refused = (await subscribe("hooked:closed")).seen;
    const heard = once(granted.subscription, "publication");
    await granted.subscription.publish({ said: "by the client" });
    seen.heard = (await heard).data;
    seen.unsaid = await granted.subscription.publish({ rude: true }).then(() => "said", ({ code }) => code);
    seen.rpc = (await made.rpc("add", { a: 1, b: 2 })).data;
    seen.unknown = await made.rpc("subtract", {}).then(() => "done", ({ code, message }) => [code, message]);
    const banned = once(made, "disconnected");
    made.rpc("misbehave", {}).catch(() => {});
    const { code, reason } = await banned;
    seen.banned = [code, reason];
  } finally {
    made.disconnect();
  }
  return seen;
}
