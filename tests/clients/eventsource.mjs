// npm eventsource as it is: tells each event of one stream as a line of JSON.

import { EventSource } from "eventsource";

const { url } = JSON.parse(process.argv[2]);
const source = new EventSource(url);
const tell = (what) => console.log(JSON.stringify(what));

source.addEventListener("open", () => tell({ event: "open" }));
source.addEventListener("message", ({ data, lastEventId }) =>
  tell({ event: "message", data: JSON.parse(data), id: lastEventId }));
source.addEventListener("error", ({ code }) => {
  tell({ event: "error", code, closed: source.readyState === EventSource.CLOSED });
});
