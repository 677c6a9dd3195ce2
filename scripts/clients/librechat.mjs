// @librechat/agents: its tool that runs code, the files that a run made in the next one, and a shell command.
process.env.LIBRECHAT_CODE_BASEURL = `${process.env.WG_URL}/librechat`; // read when the package is loaded
const { createCodeExecutionTool, createBashExecutionTool } = await import('@librechat/agents');
import assert from 'node:assert';

const authHeaders = { 'X-API-Key': process.env.WG_KEY };
const base = process.env.LIBRECHAT_CODE_BASEURL;

const form = new FormData(); // as LibreChat's server uploads an attachment
form.append('kind', 'user');
form.append('id', 'ada');
form.append('file', new Blob(['a,b\n1,2\n']), 'in.csv');
const stored = await (await fetch(`${base}/upload`, { method: 'POST', headers: authHeaders, body: form })).json();
assert.equal(stored.message, 'success');
const attached = { id: stored.files[0].fileId, resource_id: 'ada', kind: 'user', name: 'in.csv',
  storage_session_id: stored.storage_session_id };

const call = async (tool, args, files, session_id) =>
  tool.invoke({ name: tool.name, args, id: 'call_1', type: 'tool_call', session_id, _injected_files: files });

const python = createCodeExecutionTool({ authHeaders });
const code = "print(open('/mnt/data/in.csv').read()); open('/mnt/data/out.txt', 'w').write('42')";
const first = await call(python, { lang: 'py', code }, [attached]);
assert.match(first.content, /stdout:\na,b\n1,2/);
const made = first.artifact.files.find((each) => each.name === 'out.txt');
const file = await fetch(`${base}/download/${first.artifact.session_id}/${made.id}?kind=user&id=ada`, { headers: authHeaders });
assert.equal(await file.text(), '42');

const bash = createBashExecutionTool ? createBashExecutionTool({ authHeaders }) : python;
const again = { ...made, resource_id: 'ada', kind: 'user' };
const second = await call(bash, { lang: 'bash', code: 'cat /mnt/data/out.txt', command: 'cat /mnt/data/out.txt' }, [again],
  first.artifact.session_id);
assert.match(second.content, /stdout:\n42/);
