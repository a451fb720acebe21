// A search for "retries" also finds "retry" and "retrying". The theme looks for all words that begin with the one that was
// typed, so it is enough to leave out how that one ends. Its own stemmer changes the index, but not such a query: with it,
// "retries" finds nothing. Of x-messaging-round all parts have to be there, and of messaging.testing.ask the last one.
{
  const endings = [
    [/(ss|sh|ch|x|z)es$/, "$1"],
    [/([^sui])s$/, "$1"],
    [/(?:ing|ed)$/, ""],
    [/([bdgmnprt])\1$/, "$1"], // stopping, stop
    [/([^aeiou])(?:ie|i|y)$/, "$1"], // retries without its s, retried without its ed, retry
  ];

  const stemOf = (word) => {
    const stem = endings.reduce((rest, [ending, instead]) => rest.replace(ending, instead), word.toLowerCase());
    return stem.length < 4 ? word : stem;
  };

  const understood = (word) => {
    if (/^[a-z]+$/i.test(word)) return stemOf(word);
    if (/^\w+(-\w+)+$/.test(word)) return word.replace(/-?(\w+)/g, " +$1*");
    if (/^\w+(\.[a-z_]\w*)+$/i.test(word)) return word.replace(/\.(\w+)$/, " +$1*");
    return word;
  };

  const send = Worker.prototype.postMessage;
  Worker.prototype.postMessage = function (message, ...rest) {
    const asks = message?.type === 2 && !message.data.includes('"');
    return send.call(this, asks ? { ...message, data: message.data.replace(/\S+/g, understood) } : message, ...rest);
  };
}
