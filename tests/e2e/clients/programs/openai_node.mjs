// What a user of openai-node writes; prints one JSON object, one key for each case.
import OpenAI from "openai";

const client = new OpenAI({ maxRetries: 0 }); // OPENAI_BASE_URL and OPENAI_API_KEY
const tools = new OpenAI({ baseURL: process.env.TOOLS_BASE_URL, maxRetries: 0 });
const ask = {
  model: "qwen-plus",
  messages: [{ role: "user", content: "hello" }],
  max_tokens: 16,
  enable_thinking: false, // Bailian's own field: here at top level
};
const said = {};

const whole = await client.chat.completions.create(ask);
said.whole = { text: whole.choices[0].message.content, id: whole._request_id, usage: whole.usage };

said.stream = { text: "", roles: [], usage: null };
const options = { stream: true, stream_options: { include_usage: true } };
for await (const chunk of await client.chat.completions.create({ ...ask, ...options })) {
  for (const choice of chunk.choices) {
    said.stream.text += choice.delta.content ?? "";
    if (choice.delta.role) said.stream.roles.push(choice.delta.role);
  }
  said.stream.usage = chunk.usage ?? said.stream.usage;
}

said.helper = await client.chat.completions.stream(ask).finalContent();

const look = [
  { type: "image_url", image_url: { url: process.env.PICTURE } },
  { type: "text", text: "What is it?" },
];
const seen = await client.chat.completions.create({
  ...ask,
  messages: [{ role: "user", content: look }],
});
said.picture = { text: seen.choices[0].message.content, usage: seen.usage };

const calling = { ...ask, ...JSON.parse(process.env.TOOLS), max_tokens: 200 };
const called = await tools.chat.completions.create(calling);
const streamed = await tools.chat.completions.stream(calling).finalChatCompletion();
said.calls = [called, streamed].map(({ choices: [{ message, finish_reason }] }) => ({
  finish_reason,
  functions: message.tool_calls.map((call) => call.function),
  ids: message.tool_calls.map((call) => call.id),
}));

said.many = await Promise.all(
  Array.from({ length: 8 }, () => client.chat.completions.create(ask)),
).then((answers) => answers.map((answer) => answer.choices[0].message.content));

const broken = await client.chat.completions.stream({ ...ask, max_tokens: 500, ...JSON.parse(process.env.ENDLESS) });
for await (const chunk of broken) {
  if (chunk.choices[0]?.delta.content) break; // leaving the loop closes the connection
}

said.models = (await client.models.list()).data.map((model) => model.id);
try {
  await client.chat.completions.create({ ...ask, model: "gpt-4o" });
} catch (error) {
  said.refused = { kind: error.constructor.name, status: error.status, code: error.code };
}
console.log(JSON.stringify(said));
