// k6: streams that run at a time, each with as many explanations as frames. tools.py sets the environment.
import encoding from "k6/encoding";
import { Counter } from "k6/metrics";
import grpc from "k6/net/grpc";

const { ADDRESS, CA, FRAMES, PICTURE, PROTO, STREAMS, TOKEN } = __ENV;
const client = new grpc.Client();
client.load([PROTO], "camlens/v1/explain.proto");
const data = encoding.b64encode(open(PICTURE, "b"));
const authority = CA ? open(CA) : undefined;
const explained = new Counter("explained");
const ended = new Counter("ended");

const streams = { executor: "per-vu-iterations", vus: Number(STREAMS), iterations: 1 };
export const options = { scenarios: { streams } };

export default () => {
  client.connect(ADDRESS, CA ? { tls: { cacerts: [authority] } } : { plaintext: true });
  const metadata = CA ? { authorization: `Bearer ${TOKEN}` } : {};
  const stream = new grpc.Stream(client, "camlens.v1.ExplainService/ExplainStream", { metadata });
  const map = { map: "MAP_GRAD_CAM", elementType: "ELEMENT_TYPE_UINT8", resolution: "RESOLUTION_LAYER" };
  stream.on("data", (message) => {
    if (message.opened) {
      for (let sequence = 1; sequence <= Number(FRAMES); sequence++) {
        stream.write({ frame: { sequence, encoded: { data } } });
      }
    }
    if (message.explanation) explained.add(1);
    if (message.explanation && Number(message.explanation.sequence) === Number(FRAMES)) stream.end();
  });
  stream.on("error", (error) => console.error(JSON.stringify(error)));
  stream.on("end", () => {
    ended.add(1);
    client.close();
  });
  stream.write({ open: { options: { tensors: [map] }, policy: { overflow: "OVERFLOW_BLOCK" } } });
};
