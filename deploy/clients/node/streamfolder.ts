// Streams a folder of pictures to camlens and writes an overlay of each. ../README.md explains the steps.
import * as grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";
import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { setTimeout } from "node:timers/promises";
import type { ProtoGrpcType } from "./gen/explain";
import type { ExplainStreamResponse__Output as Response } from "./gen/camlens/v1/ExplainStreamResponse";

const { CAMLENS_SERVER: server = "127.0.0.1:8033", CAMLENS_TLS_CA: ca, CAMLENS_TOKEN: token } = process.env;
const overflow = `OVERFLOW_${process.env.CAMLENS_OVERFLOW ?? "BLOCK"}` as "OVERFLOW_BLOCK" | "OVERFLOW_LATEST";
const proto = { includeDirs: [join(__dirname, "../../../../proto")], longs: Number, enums: String, oneofs: true };
const definition = grpc.loadPackageDefinition(loadSync("camlens/v1/explain.proto", proto));
const { ExplainService } = (definition as unknown as ProtoGrpcType).camlens.v1;

const [folder, out] = process.argv.slice(2);
const files = readdirSync(folder).sort(); // a frame's sequence is its file's index + 1
const waiting = files.map((_, index) => index + 1); // frames to send
const sent = new Set<number>(); // frames in flight: sent on this connection and not ended
const counts = { connections: 0, explained: 0, dropped: 0, failed: 0, lost: 0 };

/** Ends up to `count` frames in flight, from `first` to `last`. */
function end(how: keyof typeof counts, first: number, last = first, count = 1) {
  for (const sequence of [...sent].filter((one) => first <= one && one <= last).slice(0, count)) {
    sent.delete(sequence);
    counts[how]++;
  }
}

/** Holds one stream, from Open to its status: sends within the credit and reads how each frame ends. */
function converse(): Promise<grpc.StatusObject> {
  const credentials = ca ? grpc.credentials.createSsl(readFileSync(ca)) : grpc.credentials.createInsecure();
  const client = new ExplainService(server, credentials, { "grpc.max_receive_message_length": -1 });
  const metadata = new grpc.Metadata();
  if (token) metadata.set("authorization", `Bearer ${token}`);
  const stream = client.ExplainStream(metadata);
  const pictures = [{ picture: "PICTURE_OVERLAY", format: "IMAGE_FORMAT_PNG" }] as const;
  stream.write({ open: { options: { pictures: [...pictures] }, policy: { overflow } } });
  let [credit, accepted] = [0, files.length]; // without GoingAway any frame that was sent may have been accepted
  stream.on("data", ({ opened, explanation, dropped, frameError, goingAway }: Response) => {
    if (opened) {
      credit = opened.maxInFlight ?? 0;
      counts.connections++;
    } else if (explanation) {
      const name = join(out, `${basename(files[Number(explanation.sequence) - 1])}.png`);
      writeFileSync(name, explanation.targets![0].pictures![0].data as Buffer);
      end("explained", Number(explanation.sequence));
    } else if (dropped) end("dropped", +dropped.firstSequence!, +dropped.lastSequence!, +dropped.count!);
    else if (frameError) end("failed", Number(frameError.sequence));
    else if (goingAway) [credit, accepted] = [0, Number(goingAway.lastAcceptedSequence ?? 0)];
    while (sent.size < credit && waiting.length > 0) {
      const sequence = waiting.shift()!;
      sent.add(sequence);
      stream.write({ frame: { sequence, encoded: { data: readFileSync(join(folder, files[sequence - 1])) } } });
    }
    if (sent.size + waiting.length === 0) stream.end();
  });
  stream.on("error", () => {}); // the status has it
  return new Promise((resolve) => stream.on("status", (status) => {
    client.close(); // a server that goes away is left for another connection
    const unread = [...sent].filter((sequence) => sequence > accepted);
    for (const sequence of unread) sent.delete(sequence);
    waiting.unshift(...unread);
    end("lost", 1, accepted, accepted); // or send them again, where explaining one twice does no harm
    resolve(status);
  }));
}

(async () => {
  for (let tries = 0; waiting.length > 0; tries++) {
    const before = waiting.length;
    const { code, details } = await converse();
    // What a connection that broke is called, also by proxies: another try may succeed.
    const mayPass = ["OK", "UNAVAILABLE", "INTERNAL", "UNKNOWN", "CANCELLED"].includes(grpc.status[code]);
    if (!mayPass || tries === 20) throw new Error(`${grpc.status[code]}: ${details}`);
    if (waiting.length < before) tries = 0;
    if (waiting.length > 0) await setTimeout(Math.random() * Math.min(5000, 100 * 2 ** tries));
  }
  console.log(JSON.stringify(counts));
})();
